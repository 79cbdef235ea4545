"""Inputs of a block's linears turned in blocks, each once for all that read it, as a sample of it says (DuQuant)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from quantize.block import Block, Kit
from quantize.block_turn import BlockTurn
from quantize.steps.spread import spreading_turn
from quantize.types import Need
from quantize.workers import in_threads


@dataclass(frozen=True)
class TurnBlocks:
    """A BlockTurn for each input that the plan wants turned so; from then on it is the ``turn`` of the plans of what reads it."""

    needs: Need = Need.HESSIAN

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step."""
        wanted = [name for name in names if block.plans[name].turn_blocks]
        alone = set(wanted).difference(*block.sites)
        sites = [[name for name in site if name in wanted] for site in block.sites] + [[name] for name in wanted if name in alone]

        def found(site: list[str]) -> dict[str, BlockTurn]:
            first, *_ = site
            inputs = block.stats[first].inputs
            assert inputs is not None, f"{first}: no sample of its input was kept"
            turn = spreading_turn(inputs.sample, block.plans[first].turn_blocks, kit.seed, first)
            return dict.fromkeys(site, turn)

        turns = {name: turn for one in in_threads(found, filter(None, sites)) for name, turn in one.items()}
        plans = {name: replace(plan, turn=turns.get(name, plan.turn)) for name, plan in block.plans.items()}
        return replace(block, plans=plans)
