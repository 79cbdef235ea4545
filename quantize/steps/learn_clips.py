"""Ranges of groups learned block by block: the weight clipping of OmniQuant (arXiv 2308.13137).

A group of weights is rounded between ``beta`` times its least and ``gamma`` times its largest weight, zero included. Both take
steps of a fixed size against the sign of the block's loss, whose slope passes rounding as if it were not there. Both 1 is
rounding to nearest by minimum and maximum. Scale and zero point, or minimum, are whatever the grid fits to the clipped weights.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantize.block import Block, Kit, Student
from quantize.blocks import dequantize, to_blocks, to_rows
from quantize.errors import asked
from quantize.rounding.exact import EXACT
from quantize.rounding.rtn import EVEN, along, nearest_codes
from quantize.steps.descent import Schedule, descend, judges_of, put_stored
from quantize.steps.learn_codes import LEARNED, SEQUENCES, SPAN
from quantize.types import F32, FINE_BITS, InputStats, Need, QuantizedTensor
from quantize.weight import weight_of

RATE = 0.01  # of a group's range, per step
LEAST = 0.3  # of it, what is left at the least
SEARCHED = tuple(1 - 0.05 * step for step in range(11))  # what both ends may be to begin with
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class LearnClips:
    """Of the linears of a method, in the block that runs; the others count as they are rounded."""

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
        plain = [Clips(block.rounded[name].tensor, block.tensors[name]) for name in learning]
        searched = [knobs.searched(block.stats.get(knobs.tensor.name)) for knobs in plain]
        start = min((plain, searched), key=lambda knobs: _loss(knobs, student, kit))
        found = descend(start, student, kit.orders, schedule)
        tensors = {tensor.name: tensor for tensor in found.tensors if isinstance(tensor, QuantizedTensor)}
        clipped = {name: block.rounded[name]._replace(tensor=tensor) for name, tensor in tensors.items()}
        return replace(block, rounded={**block.rounded, **clipped}).reporting(LEARNED, found.before, found.after)


def _loss(knobs: Sequence[Clips], student: Student, kit: Kit) -> float:
    """On the judges' sequences."""
    for one in knobs:
        student.put(one.tensor.name, kit.orders.to_source(one.tensor.name, weight_of(one.tensor)), learns=False)
    return student.loss(judges_of(student.sequences))


class Clips:
    """Knobs: of each group of F32[OC, IC] the share of its least and of its largest weight, F32[2, rows, n_groups].

    The grid and axis are those of ``tensor``.
    """

    def __init__(self, tensor: QuantizedTensor, weight: F32, ends: F32 | None = None) -> None:
        self._like, self._weight, self._rows = tensor, weight, np.ascontiguousarray(to_rows(weight, tensor.axis))
        self._groups = to_blocks(self._rows, tensor.grid.group_size)
        self._range = np.stack([np.minimum(self._groups.min(-1), 0), np.maximum(self._groups.max(-1), 0)])
        self._ends = np.ones_like(self._range) if ends is None else ends
        self.tensor = self._rounded(self._ends)
        self.keep()

    @property
    def moves(self) -> bool:
        """8 bits have room for any range."""
        return self.tensor.grid.bits < FINE_BITS

    def searched(self, stats: InputStats | None) -> Clips:
        """With those of SEARCHED, the same for both ends, that leave least error by importance."""
        known = None if stats is None else along(stats, self._like.axis)
        importance = EVEN if known is None else to_blocks(known, self._like.grid.group_size)
        left = list[F32]()
        for share in SEARCHED:
            error = self._groups - self._of_groups(dequantize(self._rounded(np.full_like(self._range, share))))
            left.append((np.square(error) * importance).sum(-1))
        best = np.array(SEARCHED, np.float32)[np.argmin(left, axis=0)]
        return Clips(self._like, self._weight, np.stack([best, best]))

    def move(self, gradient: F32, rate: float, step: int) -> None:
        """Both ends of every group one stride against the sign of its slope; ``gradient`` F32[OC, IC] is that by the weights."""
        low, high = (self._range * self._ends)[..., None]
        slope, held = self._of_groups(gradient), self._of_groups(dequantize(self.tensor))
        over, under = self._groups > high, self._groups < low
        inside = (held - self._groups) / np.maximum(high - low, _TINY)  # what a wider range does to a weight in it
        by_high = (slope * np.where(over, 1, np.where(under, 0, inside))).sum(-1)
        by_low = (slope * np.where(under, 1, np.where(over, 0, -inside))).sum(-1)
        stride = np.float32(rate * RATE) * np.sign(self._range * np.stack([by_low, by_high]))
        self._ends = np.clip(self._ends - stride, np.float32(LEAST), np.float32(1))
        self.tensor = self._rounded(self._ends)

    def keep(self) -> None:
        """Remember tensor and ends."""
        self._kept = self.tensor, self._ends

    def take_back(self) -> None:
        """What was kept."""
        self.tensor, self._ends = self._kept

    def _rounded(self, ends: F32) -> QuantizedTensor:
        """To the nearest values of what the grid fits to the clipped weights."""
        low, high = (self._range * ends)[..., None]
        clipped = np.clip(self._groups, low, high).reshape(len(self._rows), -1)[:, : self._rows.shape[1]]
        grid = self._like.grid
        params = grid.fit(to_blocks(clipped, grid.block_size))
        return replace(self._like, codes=nearest_codes(self._rows, grid, params), params=params)

    def _of_groups(self, weight: F32) -> F32:
        return to_blocks(to_rows(weight, self._like.axis), self._like.grid.group_size)
