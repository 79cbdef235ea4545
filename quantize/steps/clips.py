"""What OmniQuant learns of a weight: both ends of each group's range, for inputs of whatever scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantize.blocks import dequantize, from_rows, to_blocks, to_rows
from quantize.rounding.rtn import EVEN, along, nearest_codes
from quantize.types import F32, FINE_BITS, InputStats, QuantizedTensor

RATE = 0.01  # of a group's range, per step
LEAST = 0.3  # of it, what is left at the least
SEARCHED = tuple(1 - 0.05 * step for step in range(11))  # what both ends may be to begin with
_TINY = np.finfo(np.float32).tiny


class Clips:
    """Knobs: of each group of F32[OC, IC] the share of its least and of its largest weight, F32[2, rows, n_groups].

    The grid and axis are those of ``tensor``. What is rounded is the weight over ``factor`` F32[IC], which its inputs have more.
    Ends are counted from zero. A group of one sign, on a grid whose minimum may be anything, has them counted from its middle.
    """

    def __init__(self, tensor: QuantizedTensor, weight: F32, ends: F32 | None = None, factor: F32 | None = None) -> None:
        self._like, self._weight = tensor, weight
        self._factor = np.ones(weight.shape[1], np.float32) if factor is None else factor
        self._group()
        self._ends = np.ones_like(self._range) if ends is None else ends
        self.tensor = self._rounded(self._ends)
        self.slope = np.zeros(weight.shape[1], np.float32)  # of the logarithms of ``factor``, at the last step
        self.keep()

    @property
    def weight(self) -> F32:
        """F32[OC, IC]: what stands in for the source's, whose inputs are as they were."""
        return dequantize(self.tensor) * self._factor

    @property
    def moves(self) -> bool:
        """8 bits have room for any range."""
        return self.tensor.grid.bits < FINE_BITS

    @property
    def ends(self) -> F32:
        """As they are now."""
        return self._ends

    def searched(self, stats: InputStats | None) -> Clips:
        """With those of SEARCHED, the same for both ends, that leave least error; ``stats``: of its inputs as they are."""
        known = None if stats is None else along(stats, self._like.axis)
        importance = EVEN if known is None else to_blocks(known, self._like.grid.group_size)
        left = list[F32]()
        for share in SEARCHED:
            rounded = dequantize(self._rounded(np.full_like(self._range, share)))
            error = self._of_groups(self._weight - rounded * self._factor)
            left.append((np.square(error) * importance).sum(-1))
        best = np.array(SEARCHED, np.float32)[np.argmin(left, axis=0)]
        return Clips(self._like, self._weight, np.stack([best, best]), self._factor)

    def move(self, gradient: F32, rate: float, step: int) -> None:
        """Both ends of every group one stride against the sign of its slope; ``gradient`` F32[OC, IC] is that by the weights."""
        low, high = self._limits(self._ends)[..., None]
        slope, held = self._of_groups(gradient * self._factor), self._of_groups(dequantize(self.tensor))
        over, under = self._groups > high, self._groups < low
        inside = (held - self._groups) / np.maximum(high - low, _TINY)  # what a wider range does to a weight in it
        by_high = (slope * np.where(over, 1, np.where(under, 0, inside))).sum(-1)
        by_low = (slope * np.where(under, 1, np.where(over, 0, -inside))).sum(-1)
        self.slope = self._by_channel(slope * (held - np.where(over | under, 0, self._groups)), by_low, by_high)
        stride = np.float32(rate * RATE) * np.sign(self._range * np.stack([by_low, by_high]))
        self._ends = np.clip(self._ends - stride, np.float32(LEAST), np.float32(1))
        self.tensor = self._rounded(self._ends)

    def scale(self, factor: F32) -> None:
        """From now on what is rounded is the weight over ``factor`` F32[IC]; ends keep their shares."""
        self._factor = factor
        self._group()
        self.tensor = self._rounded(self._ends)

    def keep(self) -> None:
        """Remember tensor, ends and factor."""
        self._kept = self.tensor, self._ends, self._factor

    def take_back(self) -> None:
        """What was kept."""
        self.tensor, self._ends, self._factor = self._kept
        self._group()

    def _group(self) -> None:
        """What follows from weight and factor."""
        self._rows = np.ascontiguousarray(to_rows(self._weight / self._factor, self._like.axis))
        self._groups = to_blocks(self._rows, self._like.grid.group_size)
        least, most = self._groups.min(-1), self._groups.max(-1)
        turning: F32 = np.minimum(np.maximum(least, 0), most)
        if turning.any():
            turning = np.where(turning, (least + most) / 2, 0).astype(np.float32) if self._holds_no_zero() else turning * 0
        self._turning = turning
        self._extremes = np.stack([np.minimum(least, turning), np.maximum(most, turning)])
        self._range = self._extremes - turning

    def _holds_no_zero(self) -> bool:
        """Whether weights of one sign leave the grid no value near 0."""
        grid, rows = self._like.grid, np.linspace(1, 2, self._like.grid.block_size, dtype=np.float32)[None]
        params = grid.fit(to_blocks(rows, grid.block_size))
        nearest = replace(self._like, codes=nearest_codes(np.zeros_like(rows), grid, params), params=params)
        return bool(dequantize(nearest).min() > 0.5)

    def _limits(self, ends: F32) -> F32:
        """What weights are clipped at, F32[2, rows, n_groups]."""
        limits: F32 = np.where(ends == 1, self._extremes, self._turning + self._range * ends)
        return limits

    def _rounded(self, ends: F32) -> QuantizedTensor:
        """To the nearest values of what the grid fits to the clipped weights."""
        low, high = self._limits(ends)[..., None]
        clipped = np.clip(self._groups, low, high).reshape(len(self._rows), -1)[:, : self._rows.shape[1]]
        grid = self._like.grid
        params = grid.fit(to_blocks(clipped, grid.block_size))
        return replace(self._like, codes=nearest_codes(self._rows, grid, params), params=params)

    def _by_channel(self, own: F32, by_low: F32, by_high: F32) -> F32:
        """F32[IC]: slopes by the logarithms of ``factor``. ``own`` is by weight, the ends as they were.

        The ends move too, with the channels that have a group's least and largest weight.
        """
        places = self._groups.argmin(-1), self._groups.argmax(-1)
        for at, slope, end in zip(places, (by_low, by_high), self._limits(self._ends), strict=True):
            place = at[..., None]
            np.put_along_axis(own, place, np.take_along_axis(own, place, -1) - (slope * end)[..., None], -1)
        rows = own.reshape(len(self._rows), -1)[:, : self._rows.shape[1]]
        out: F32 = from_rows(rows, self._like.axis).sum(0)
        return out

    def _of_groups(self, weight: F32) -> F32:
        return to_blocks(to_rows(weight, self._like.axis), self._like.grid.group_size)
