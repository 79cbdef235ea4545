"""Levels instead of equal steps: IQ4_NL (ggml-quants.c, ``quantize_row_iq4_nl_impl``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantize.grids.ggml import BLOCK
from quantize.grids.least_squares import best_scale, fit_turned, ratio
from quantize.types import F32, U8, Params

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # ggml's kvalues_iq4nl
IQ4_STARTS = (*np.arange(-140, -100, 4), *np.arange(96, 128, 4))  # where a search puts the extreme weight


@dataclass(frozen=True)
class Codebook:
    """Rising whole numbers below 128; the nearest one by a table of half steps, because every midpoint is one."""

    levels: tuple[int, ...]

    @cached_property
    def values(self) -> F32:
        """F32[n]: level of each code."""
        return np.array(self.levels, np.float32)

    @cached_property
    def _codes(self) -> U8:
        """Code of the half step [i / 2 - 128, (i + 1) / 2 - 128); a midpoint goes up, as in ggml."""
        middles = np.arange(512) / 2 - 128 + 0.25
        codes: U8 = np.abs(middles[:, None] - self.values).argmin(1).astype(np.uint8)
        return codes

    @cached_property
    def _nearest(self) -> F32:
        return self.values[self._codes]

    def encode(self, t: F32) -> U8:
        """Codes of the nearest levels to ``t`` (weight / scale)."""
        codes: U8 = self._codes[_half_steps(t)]
        return codes

    def nearest(self, t: F32) -> F32:
        """The nearest levels."""
        return self._nearest.take(_half_steps(t))


def _half_steps(t: F32) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
    return (np.clip(t, -128, 127.5) * np.float32(2) + np.float32(256)).astype(np.intp)


IQ4 = Codebook(IQ4_LEVELS)


@dataclass(frozen=True)
class GgmlCodebook:
    """``w = d * level[q]``; params: ``d`` F16[rows, n_blocks], of either sign."""

    name: str
    bits: int
    bits_per_weight: float
    book: Codebook
    group_size: int = BLOCK
    block_size: int = BLOCK
    symmetric: bool = True

    def fit(self, blocks: F32, importance: F32 | None = None) -> Params:
        """``d`` of least error; without ``importance`` large weights count more (w**2), as in ggml."""
        weights = np.square(blocks) if importance is None else importance
        return fit_turned(blocks, weights, self.group_size, self._fit)

    def _fit(self, x: F32, w: F32) -> Params:
        scale, _ = best_scale(x[:, 0], w[:, 0], self.book.nearest, IQ4_STARTS)
        return {"d": scale.astype(np.float16)}

    def scale_zero(self, params: Params) -> tuple[F32, F32]:
        """(d, 0) as F32[..., 1]: a codebook knows no zero point."""
        d = params["d"].astype(np.float32)[..., None]
        return d, np.zeros_like(d)

    def encode(self, x: F32, scale: F32, zero: F32) -> U8:
        """Code of the nearest level."""
        return self.book.encode(ratio(x, scale))

    def decode(self, codes: U8, scale: F32, zero: F32) -> F32:
        """``d * level[q]`` (``dequantize_row_iq4_nl``)."""
        return scale * self.book.values[codes]


CODEBOOK_GRIDS = (GgmlCodebook("iq4_nl", 4, 4.5, IQ4),)
