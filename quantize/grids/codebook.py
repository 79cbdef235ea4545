"""Grids that are a scale times a level: IQ4_NL, MXFP4, TQ2_0; with super-blocks IQ4_XS, Q3_K, Q6_K.

After ggml-quants.c, ``quantize_row_iq4_nl_impl`` and its kin.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantize.formula import Formula
from quantize.grids.exact import either_sign, exact_scale
from quantize.grids.ggml import BLOCK, CUTS, to_float16
from quantize.grids.least_squares import Nearest, best_scale, fit_turned, half_steps, ratio, reciprocal, total
from quantize.types import F32, TINY, U8, Array, Params

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # ggml's kvalues_iq4nl
SUPER_BLOCK = 256
POLISHES = 2


@dataclass(frozen=True)
class Codebook:
    """Whole numbers below 128 by code; the nearest one by a table of half steps, because every midpoint is one.

    ``cuts``: a search puts the extreme weight on these multiples of the lowest and of the highest level.
    """

    levels: tuple[int, ...]
    cuts: tuple[float, ...] = tuple(CUTS)

    @cached_property
    def values(self) -> F32:
        """F32[n]: level of each code."""
        return np.array(self.levels, np.float32)

    @cached_property
    def starts(self) -> Array:
        """Where a search puts the extreme weight of a group, in units of its scale."""
        return np.outer([min(self.levels), max(self.levels)], self.cuts).ravel()

    @cached_property
    def codes(self) -> U8:
        """U8[512]: code of each half step; a midpoint goes up, as in ggml."""
        middles = np.arange(512) / 2 - 128 + 0.25
        codes: U8 = np.abs(middles[:, None] - self.values).argmin(1).astype(np.uint8)
        return codes

    def encode(self, t: F32) -> U8:
        """Codes of the nearest levels to ``t`` (weight / scale)."""
        codes: U8 = self.codes[half_steps(t)]
        return codes

    @cached_property
    def nearest(self) -> Nearest:
        """Equal steps need no table."""
        low, high = min(self.levels), max(self.levels)
        return Nearest(low, high) if len(self.levels) == high - low + 1 else Nearest(low, high, self.values[self.codes])


IQ4 = Codebook(IQ4_LEVELS)
TERNARY = Codebook((-1, 0, 1, 2), tuple(np.linspace(0.8, 3.2, 13)))  # the fourth code is 2 in ggml's arithmetic too


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

    @property
    def formula(self) -> Formula:
        """See Grid."""
        return Formula(self.book.values, self.book.codes, centred=True)

    def fit(self, blocks: F32, importance: F32 | None = None) -> Params:
        """Params of least error; without ``importance`` large weights count more (w**2), as in ggml."""
        return fit_turned(blocks, np.square(blocks) if importance is None else importance, self.group_size, self._fit)

    def exact(self, blocks: F32) -> Params | None:
        """See Grid."""
        d = exact_scale(blocks, either_sign(self.book.levels), self.book.nearest.__call__, to_float16)
        return None if d is None else {"d": d}

    def _fit(self, x: F32, w: F32) -> Params:
        """F32[group, 1, n] twice -> params [n]."""
        scale, _ = best_scale(x[:, 0], w[:, 0], self.book.nearest, self.book.starts)
        return {"d": to_float16(scale)}

    def scale_zero(self, params: Params) -> tuple[F32, F32]:
        """(d, 0) as F32[..., 1]: levels have their own zero."""
        d = params["d"].astype(np.float32)[..., None]
        return d, np.zeros_like(d)

    def encode(self, x: F32, scale: F32, zero: F32, importance: F32 | None = None) -> U8:
        """Code of the nearest level."""
        return self.book.encode(ratio(x, scale))

    def decode(self, codes: U8, scale: F32, zero: F32) -> F32:
        """``scale * level[q]`` (``dequantize_row_iq4_nl`` and its kin)."""
        return scale * self.book.values[codes]


@dataclass(frozen=True)
class GgmlMicroscale(GgmlCodebook):
    """``w = 2**(e - 128) * level[q]``; params: ``e`` U8[rows, n_blocks] (OCP's E8M0, halved because levels are doubled)."""

    def exact(self, blocks: F32) -> Params | None:
        """See Grid."""
        levels = [level for level in self.book.levels if level > 0]
        nearest = self.book.nearest.__call__

        def power(scale: F32) -> F32:
            """The power of two that it is, or the nearest."""
            exponents = np.log2(np.maximum(np.abs(scale), np.float32(2.0**-128)))
            out: F32 = np.exp2(np.clip(np.rint(exponents), -128, 126), dtype=np.float32)
            return out

        scale = exact_scale(blocks, levels, nearest, power)
        return None if scale is None else {"e": (np.log2(scale) + 128).astype(np.uint8)}

    def _fit(self, x: F32, w: F32) -> Params:
        """The best of the three powers of two that put the extreme weight between a quarter and twice the highest level."""
        x, w = x[:, 0], w[:, 0]
        share = np.maximum(np.abs(x).max(0) / np.float32(max(self.book.levels)), TINY)
        exponents = np.clip(np.floor(np.log2(share)) + np.arange(3)[:, None], -128, 126)
        scale = np.exp2(exponents, dtype=np.float32)
        error = self.book.nearest(x[:, None] / scale) * scale - x[:, None]
        best = np.einsum("gn,gsn,gsn->sn", w, error, error).argmin(0)
        return {"e": (np.take_along_axis(exponents, best[None], 0)[0] + 128).astype(np.uint8)}

    def scale_zero(self, params: Params) -> tuple[F32, F32]:
        """(2**(e - 128), 0) as F32[..., 1]."""
        scale = np.ldexp(np.float32(1), params["e"].astype(np.int32) - 128)[..., None]
        return scale, np.zeros_like(scale)


@dataclass(frozen=True)
class GgmlKCodebook(GgmlCodebook):
    """``w = (d * scale) * level[q]`` in super-blocks of 256.

    params: ``d`` F16[rows, n_blocks]; ``scales`` I8[rows, n_blocks, 256 // group_size] from ``-span`` to ``span - 1``.
    """

    block_size: int = SUPER_BLOCK
    span: int = 32

    def exact(self, blocks: F32) -> Params | None:
        """Not looked for: a scale is a product of two."""
        return None

    def _fit(self, x: F32, w: F32) -> Params:
        """The best scale of each group, the best d for these, then whole numbers beside them and d again.

        F32[group, groups, n] twice -> params [n] and [groups, n].
        """
        group, groups, n = x.shape
        x, w = x.reshape(group, -1), w.reshape(group, -1)
        whole = Nearest(-self.span, self.span - 1)
        scale, curvature = (value.reshape(groups, n) for value in best_scale(x, w, self.book.nearest, self.book.starts))
        starts = np.concatenate([-self.span * CUTS, (self.span - 1) * CUTS])
        d = to_float16(best_scale(scale, curvature, whole, starts)[0])
        scales = whole(ratio(scale, d.astype(np.float32)))
        for _ in range(POLISHES):
            d, scales = self._polish(x, w, d, scales)
        return {"d": d, "scales": scales.astype(np.int8)}

    def _polish(self, x: F32, w: F32, d: Array, scales: F32) -> tuple[Array, F32]:
        """(d, scales) that leave no larger error: each whole number one up or down, then d by least squares."""
        kept, best = scales, self._loss(x, w, d * scales)
        for step in (-1, 1):
            trial = np.clip(scales + np.float32(step), -self.span, self.span - 1)
            loss = self._loss(x, w, d * trial)
            kept, best = np.where(loss < best, trial, kept), np.minimum(loss, best)
        values = self.book.nearest(x * reciprocal(d * kept).reshape(-1))
        on_scale, square = (total(w, other, values).reshape(kept.shape) for other in (x, values))
        other = to_float16(ratio((kept * on_scale).sum(0), (kept * kept * square).sum(0)))
        better = self._loss(x, w, other * kept).sum(0) < best.sum(0)
        return np.where(better, other, d), kept

    def _loss(self, x: F32, w: F32, scale: F32) -> F32:
        """Weighted squared error of each group, F32[groups, n]."""
        flat = scale.reshape(-1)
        error = self.book.nearest(x * reciprocal(flat))
        error *= flat
        error -= x
        return total(w, error, error).reshape(scale.shape)

    def scale_zero(self, params: Params) -> tuple[F32, F32]:
        """(d * scale, 0) as F32[..., groups]."""
        scale = params["d"].astype(np.float32)[..., None] * params["scales"].astype(np.float32)
        return scale, np.zeros_like(scale)


CODEBOOK_GRIDS = (
    GgmlCodebook("iq4_nl", 4, 4.5, IQ4),
    GgmlCodebook("tq2_0", 2, 2.0625, TERNARY, SUPER_BLOCK, SUPER_BLOCK),
    GgmlMicroscale("mxfp4", 4, 4.25, Codebook((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12))),
    GgmlKCodebook("q3_k", 3, 3.4375, Codebook(tuple(range(-4, 4))), 16),
    GgmlKCodebook("q6_k", 6, 6.5625, Codebook(tuple(range(-32, 32))), 16, span=128),
    GgmlKCodebook("iq4_xs", 4, 4.25, IQ4),
)
