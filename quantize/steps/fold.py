"""The basis in which a block's linears are rounded best, among those that leave its function as it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from quantize.architecture.families import FoldSites
from quantize.block import Block, Kit, as_multiplied
from quantize.blocks import dequantize
from quantize.fold import Fold
from quantize.loss import output_loss
from quantize.rounding import NEAREST
from quantize.rounding.exact import exact
from quantize.rounding.gptq import with_visits
from quantize.transforms import CORRECTIONS, TRANSFORMS, Propose
from quantize.types import Need
from quantize.weight import turned, turned_back

AS_IS = Fold()
APPLIED = "applied"  # key of a block's report


@dataclass(frozen=True)
class ChangeBasis:
    """Of each place that the transform ``name`` knows, the candidate that pays, if any does, and if it changes no linear but the
    method's own. ``propose``: its candidates, where TRANSFORMS does not say them."""

    name: str
    propose: Propose | None = None
    needs: Need = Need.HESSIAN

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step."""
        at = foldable(block)
        proposed = [] if at is None else (self.propose or TRANSFORMS[self.name])(block, at)
        own = (candidates for candidates in proposed if set(names).issuperset(touched(block, candidates[0])))
        folds = [fold for candidates in own if (fold := best_fold(block, candidates, kit)) is not None]
        for fold in folds:
            block = block.folded(fold)
        return block.reporting(APPLIED, self.name) if folds else block


@dataclass(frozen=True)
class Correction:
    """New gains for norms, by ``name`` in CORRECTIONS, that make up for the rounded weights behind them."""

    name: str
    needs: Need = Need.HESSIAN

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step."""
        assert not block.beside, "gains are refitted for whole weights"
        at = foldable(block)
        gains = {} if at is None else CORRECTIONS[self.name](block, at)
        return replace(block, tensors={**block.tensors, **gains}).reporting(APPLIED, self.name) if gains else block


def foldable(block: Block) -> FoldSites | None:
    """Where its basis may change. Nowhere if a linear stays as it is, in floats or on its grid: no fold helps it, and its values
    would move."""
    moves = all(name in block.plans and not _is_exact(block, name) for name, value in block.tensors.items() if value.ndim > 1)
    return block.fold_sites if moves else None


def _is_exact(block: Block, name: str) -> bool:
    plan = block.plans[name]
    weight = turned(block.tensors[name], plan.turn)
    return any(exact(name, weight, grid, axis) is not None for axis, grid in plan.candidates.items())


def best_fold(block: Block, candidates: Iterable[Fold], kit: Kit) -> Fold | None:
    """The fold under which the weights that it touches lose least, if that is less than without any.

    Rounding to nearest finds it, and the planned rounder has to confirm it.
    """
    loss, best = min(((_loss(block, fold, fold, kit, False), fold) for fold in candidates), key=lambda found: found[0])
    if not loss < _loss(block, best, AS_IS, kit, False):
        return None
    return best if _loss(block, best, best, kit, True) < _loss(block, best, AS_IS, kit, True) else None


def touched(block: Block, fold: Fold) -> list[str]:
    """The linears that a fold changes."""
    return [name for name, value in block.tensors.items() if value.ndim > 1 and (name in fold.made or name in fold.read)]


def _loss(block: Block, changed: Fold, fold: Fold, kit: Kit, planned: bool) -> float:
    """Of the weights that ``changed`` touches, rounded under ``fold``: each on the better of its axes."""
    names, total = touched(block, changed), 0.0
    stats = as_multiplied(fold.stats({name: block.stats[name] for name in names}), block.plans)
    rounders = {name: kit.rounders[block.plans[name].method if planned else NEAREST] for name in names}
    if any(rounder.needs >= Need.HESSIAN for rounder in rounders.values()):
        stats = with_visits(stats)
    for name in names:
        weight, turn, rounder = block.tensors[name], block.plans[name].turn, rounders[name]
        folded = turned(fold.tensor(name, weight), turn)
        rounded = (rounder(name, folded, grid, axis, stats[name]) for axis, grid in block.plans[name].candidates.items())
        stored = (fold.back(name, turned_back(dequantize(tensor), turn)) for tensor in rounded)
        total += min(output_loss(weight, one, block.stats[name]) for one in stored)
    return total
