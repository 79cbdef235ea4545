"""Inputs of a block's linears turned in blocks, each once for all that read it, as a sample of it says (DuQuant)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from quantize.block import Block, Kit
from quantize.steps.samples import sample_of
from quantize.steps.spread import spreading_turn
from quantize.types import Need
from quantize.workers import in_threads


@dataclass(frozen=True)
class TurnBlocks:
    """A BlockTurn for each input that a plan wants turned so; afterwards plans have it as their ``turn``."""

    needs: Need = Need.HESSIAN

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step. Raises CalibrationError where no sample of an input is known."""
        wanted = [name for name in names if block.plans[name].turn_blocks]
        sites = [[name for name in site if name in wanted] for site in block.sites]
        alone = set(wanted).difference(*sites)
        sites = [site for site in [*sites, *([name] for name in wanted if name in alone)] if site]
        sizes = [block.plans[first].turn_blocks for first, *_ in sites]
        samples = [sample_of(block, first) for first, *_ in sites]
        turns = in_threads(
            lambda one: spreading_turn(one[0], one[1], kit.seed, one[2]),
            [(sample, size, first) for sample, size, (first, *_) in zip(samples, sizes, sites, strict=True)],
        )
        found = {name: turn for site, turn in zip(sites, turns, strict=True) for name in site}
        plans = {name: replace(plan, turn=found.get(name, plan.turn)) for name, plan in block.plans.items()}
        return replace(block, plans=plans)
