"""Super-blocks of 256 whose groups have whole-numbered scales and minimums: Q2_K, Q4_K, Q5_K (``quantize_row_q*_K_impl``).

A fit finds the best scale (and minimum) of every group, then the super-block's float16 factors, then polishes: whole
numbers one up and one down by the error that they leave, and the factors again by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantize.formula import Formula
from quantize.grids.ggml import divide, to_float16
from quantize.grids.least_squares import (
    Nearest,
    best_line,
    best_scale,
    fit_turned,
    nearest_code,
    ratio,
    reciprocal,
    spreads,
    total,
    whole_codes,
    whole_formula,
)
from quantize.types import F32, TINY, U8, Array, Params

SUPER_BLOCK = 256
POLISHES = 2
FIRST_SHARES = np.linspace(0.8, 1.02, 12)  # of the largest whole number: where a search puts the largest scale


@dataclass(frozen=True)
class GgmlKOffset:
    """``w = (d * scale) * q - dmin * min``.

    params: ``d`` and ``dmin`` F16[rows, n_blocks]; ``scales`` and ``mins`` U8[rows, n_blocks, 256 // group_size], whole
    numbers up to ``top``.
    """

    name: str
    bits: int
    bits_per_weight: float
    group_size: int
    top: int
    block_size: int = SUPER_BLOCK
    symmetric: bool = False

    @property
    def formula(self) -> Formula:
        """See Grid."""
        return whole_formula(self.bits, centred=False)

    def fit(self, blocks: F32, importance: F32 | None = None) -> Params:
        """Params of least error; without ``importance`` large weights count more, as in ggml."""
        if importance is None:
            importance = np.sqrt(np.square(blocks).mean(-1, keepdims=True)) + np.abs(blocks)
        return fit_turned(blocks, importance, self.group_size, self._fit)

    def exact(self, blocks: F32) -> Params | None:
        """Not looked for: a scale is a product of two."""
        return None

    def _fit(self, x: F32, w: F32) -> Params:
        """F32[group, groups, n] twice -> params [n] and [groups, n]."""
        lines = _Lines(x.reshape(len(x), -1), w.reshape(len(x), -1), 2**self.bits - 1, self.top)
        params = lines.first(x.shape[1])
        for _ in range(POLISHES):
            params = lines.polish(params)
        return params | {key: params[key].astype(np.uint8) for key in ("scales", "mins")}

    def scale_zero(self, params: Params) -> tuple[F32, F32]:
        """(d * scale, -dmin * min) as F32[..., groups]: "zero" is the value of code 0."""
        scale = params["d"].astype(np.float32)[..., None] * params["scales"].astype(np.float32)
        return scale, -(params["dmin"].astype(np.float32)[..., None] * params["mins"].astype(np.float32))

    def encode(self, x: F32, scale: F32, zero: F32, importance: F32 | None = None) -> U8:
        """Nearest code."""
        return whole_codes(divide(x - zero, scale), 0, 2**self.bits - 1)

    def decode(self, codes: U8, scale: F32, zero: F32) -> F32:
        """``(d * scale) * q - dmin * min`` (``dequantize_row_q4_K`` and its kin)."""
        return scale * codes.astype(np.float32) + zero


@dataclass(frozen=True)
class _Lines:
    """The fit of one slice: x and w F32[group, groups * n]; codes up to ``last``, whole numbers up to ``top``.

    While it lasts, "scales" and "mins" are F32[groups, n].
    """

    x: F32
    w: F32
    last: int
    top: int

    def first(self, groups: int) -> dict[str, Array]:
        """Every group's own best line, then the factors that bring scales and minimums closest to whole numbers."""
        found = best_line(self.x, self.w, self.last, spreads(self.last))
        scale, low, curvature = (value.reshape(groups, -1) for value in found)
        params: dict[str, Array] = {}
        whole = Nearest(0, self.top)
        for factor, name, values, weights in (
            ("d", "scales", scale, curvature),
            ("dmin", "mins", -low, self._sum_w(scale)),
        ):
            params[factor] = to_float16(best_scale(values, weights, whole, self.top * FIRST_SHARES)[0])
            params[name] = whole(ratio(values, params[factor].astype(np.float32)))
        return params

    def polish(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """Params whose error is no larger: other whole numbers, then other float16 factors."""
        d, dmin = (params[key].astype(np.float32) for key in ("d", "dmin"))
        scales, mins = params["scales"], params["mins"]
        best = self._loss(d * scales, dmin * mins)
        for step in (0, -1, 1):
            trial = np.clip(params["scales"] + np.float32(step), 0, self.top)
            trial_mins = np.clip(np.rint(ratio(self._best_minimum(d * trial, dmin * params["mins"]), dmin)), 0, self.top)
            loss = self._loss(d * trial, dmin * trial_mins)
            better = loss < best
            best, scales, mins = np.where(better, loss, best), np.where(better, trial, scales), np.where(better, trial_mins, mins)
        new_d, new_dmin = self._best_factors(d, dmin, scales, mins)
        loss = self._loss(new_d.astype(np.float32) * scales, new_dmin.astype(np.float32) * mins)
        better = loss.sum(0) < best.sum(0)
        factors = {"d": np.where(better, new_d, params["d"]), "dmin": np.where(better, new_dmin, params["dmin"])}
        return factors | {"scales": scales, "mins": mins}

    def _codes(self, scale: F32, minimum: F32) -> F32:
        return nearest_code(self.x, reciprocal(scale).reshape(-1), -minimum.reshape(-1), self.last)

    def _loss(self, scale: F32, minimum: F32) -> F32:
        """Weighted squared error of each group, F32[groups, n]."""
        error = self._codes(scale, minimum)
        error *= scale.reshape(-1)
        error -= minimum.reshape(-1)
        error -= self.x
        return total(self.w, error, error).reshape(scale.shape)

    def _sum_w(self, like: F32) -> F32:
        weights: F32 = self.w.sum(0).reshape(like.shape)
        return weights

    def _best_minimum(self, scale: F32, minimum: F32) -> F32:
        """The minimum that suits the codes best which ``scale`` and ``minimum`` give."""
        sum_q, sum_x = (total(self.w, value).reshape(scale.shape) for value in (self._codes(scale, minimum), self.x))
        return ratio(scale * sum_q - sum_x, self._sum_w(scale))

    def _best_factors(self, d: F32, dmin: F32, scales: F32, mins: F32) -> tuple[Array, Array]:
        """The two float16 factors by least squares, the codes kept: two equations for each super-block."""
        q = self._codes(d * scales, dmin * mins)
        sum_q, sum_qq, sum_x, sum_xq = (
            total(*factors).reshape(scales.shape)
            for factors in ((self.w, q), (self.w, q, q), (self.w, self.x), (self.w, self.x, q))
        )
        square, cross = (scales * scales * sum_qq).sum(0), (scales * mins * sum_q).sum(0)
        minimum = (mins * mins * self._sum_w(scales)).sum(0)
        on_scale, on_minimum = (scales * sum_xq).sum(0), (mins * sum_x).sum(0)
        determinant = square * minimum - cross * cross
        both = np.abs(determinant) > TINY  # else there are no minimums, or codes that all are the same
        new_d = np.where(both, ratio(on_scale * minimum - on_minimum * cross, determinant), ratio(on_scale, square))
        new_dmin = np.where(both, ratio(on_scale * cross - on_minimum * square, determinant), 0)
        return to_float16(np.maximum(new_d, 0)), to_float16(np.maximum(new_dmin, 0))


K_GRIDS = (
    GgmlKOffset("q2_k", 2, 2.625, 16, 15),
    GgmlKOffset("q4_k", 4, 4.5, 32, 63),
    GgmlKOffset("q5_k", 5, 5.5, 32, 63),
)
