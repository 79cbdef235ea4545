"""Ranges of groups and scales of channels, learned block by block: OmniQuant (arXiv 2308.13137).

A group of weights is rounded between ``beta`` times its least and ``gamma`` times its largest weight, zero included. Both take
steps of a fixed size against the sign of the block's loss, whose slope passes rounding as if it were not there. Both 1 is
rounding to nearest by minimum and maximum. Scale and zero point, or minimum, are whatever the grid fits to the clipped weights.

Then once more with the channels that several linears read scaled too, along the same slope. They are folded into what makes them.
Sequences that no step saw decide whether a block is stored so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from quantize.block import Block, Kit, Student
from quantize.errors import asked
from quantize.fold import Fold
from quantize.rounding.exact import EXACT
from quantize.steps.channels import Channels, sites_of, started
from quantize.steps.clips import Clips
from quantize.steps.descent import Schedule, descend, judges_of, put_folded, put_stored
from quantize.steps.fold import APPLIED
from quantize.steps.learn_codes import LEARNED, SEQUENCES, SPAN
from quantize.types import F32, Need
from quantize.weight import weight_of


class Scaled(NamedTuple):
    """A block whose channels are scaled, rounded, and its loss on the judges' sequences."""

    block: Block
    loss: float


@dataclass(frozen=True)
class LearnClips:
    """Of the linears of a method, in the block that runs; the others count as they are rounded."""

    name: str = "channel-scales"
    needs: Need = Need.LEARNING

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step. Raises CalibrationError for too short a text."""
        student = None if kit.run is None else kit.run.student
        learning = [name for name in names if block.rounded[name].rounder != EXACT]  # nothing was rounded of the others
        if student is None or not learning:
            return block
        schedule = Schedule("clipping a block", kit.steps, SEQUENCES, SPAN, kit.seed, lambda _: 1.0)
        schedule.check(student.sequences, kit.text, "block_steps", f"raise {asked('data.tokens')}")
        put_stored(block, student, kit)
        knobs = _begun(block, learning, student, kit, {})
        found = descend(knobs, student, kit.orders, schedule)
        clipped = _with(block, knobs)
        scaled = _scaled(block, learning, student, kit, schedule)
        if scaled is None or not scaled.loss < found.after:
            _put(clipped, block, student, kit)
            return clipped.reporting(LEARNED, found.before, found.after)
        _put(scaled.block, block, student, kit)
        return scaled.block.reporting(LEARNED, found.before, scaled.loss).reporting(APPLIED, self.name)


def _begun(block: Block, names: Sequence[str], student: Student, kit: Kit, read: Mapping[str, F32]) -> list[Clips]:
    """With ends at 1, or where they leave least error: whatever loses less on the judges' sequences. ``read``: their factors."""
    plain = [Clips(block.rounded[name].tensor, block.tensors[name], factor=read.get(name)) for name in names]
    searched = [knobs.searched(block.stats.get(knobs.tensor.name)) for knobs in plain]
    return min((plain, searched), key=lambda knobs: _loss(knobs, student, kit))


def _loss(knobs: Sequence[Clips], student: Student, kit: Kit) -> float:
    """On the judges' sequences."""
    for one in knobs:
        student.put(one.tensor.name, kit.orders.to_source(one.tensor.name, one.weight), learns=False)
    return student.loss(judges_of(student.sequences))


def _scaled(block: Block, names: Sequence[str], student: Student, kit: Kit, schedule: Schedule) -> Scaled | None:
    """Learned once more, with channels scaled; None where there are none that may be."""
    sites = sites_of(block, names, student)
    if not sites:
        return None
    factors = [started(site, block, kit) for site in sites]
    read = {
        name: site.place.fold(factor).read[name].factor
        for site, factor in zip(sites, factors, strict=True)
        for name in site.place.readers
    }
    knobs = _begun(block, names, student, kit, read)
    own = {one.tensor.name: one for one in knobs}
    shared = [Channels(site, own, factor) for site, factor in zip(sites, factors, strict=True)]
    descend(knobs, student, kit.orders, schedule, shared)
    folds = [one.fold for one in shared]
    folded = block
    for fold in folds:
        folded = folded.folded(fold)
    made = _with(folded, [Clips(one.tensor, folded.tensors[name], one.ends) for name, one in own.items()])
    for name in names:
        student.put(name, kit.orders.to_source(name, _back(folds, name, weight_of(made.rounded[name].tensor))), learns=False)
    return Scaled(made, student.loss(judges_of(student.sequences)))


def _with(block: Block, knobs: Sequence[Clips]) -> Block:
    """Rounded as they say."""
    rounded = {one.tensor.name: block.rounded[one.tensor.name]._replace(tensor=one.tensor) for one in knobs}
    return replace(block, rounded={**block.rounded, **rounded})


def _back(folds: Sequence[Fold], name: str, weight: F32) -> F32:
    for fold in reversed(folds):
        weight = fold.back(name, weight)
    return weight


def _put(block: Block, before: Block, student: Student, kit: Kit) -> None:
    """What counts as this block for the next one's, as a run that goes on from the store would put it."""
    stored = {name: block.stored(name, rounded.tensor).dense() for name, rounded in block.rounded.items()}
    put_folded(student, block.fold_sites, {**block.tensors, **stored}, before.tensors, kit.orders)
