"""Grids whose codes are stored as words, several weights together: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S.

A word of 4 or 8 magnitudes is one of a book of 256 to 1024, which is gguf-py's; beside it stand the signs. A code here is that
of one weight: its magnitude's index, and a bit for the sign. So decoding knows of no words, and encoding finds the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantize.formula import Formula, Words
from quantize.grids.ggml import CUTS, to_float16
from quantize.grids.importance import felt
from quantize.grids.least_squares import Nearest, best_scale, fit_turned, ratio
from quantize.grids.spelling import encoded, spelled
from quantize.types import F32, U8, Array, Params

SUPER_BLOCK = 256
SIGNS_TOGETHER = 8  # weights; where their signs take 7 bits, the last one follows from the others
TOP = 15  # of a group's whole number s
POLISHES = 1
STARTS = np.linspace(0.75, 1.25, 5)  # of the highest magnitude: where a search puts the extreme weight of a group
ODD = Nearest(1, 2 * TOP + 1, np.clip(np.floor((np.arange(512) / 2 - 128 + 0.25) / 2) * 2 + 1, 1, 2 * TOP + 1).astype(np.float32))


@dataclass(frozen=True)
class GgmlLattice:
    """``w = (d * unit * (2 s + 1)) * level[q]`` in super-blocks of 256.

    params: ``d`` F16[rows, n_blocks]; ``scales`` U8[rows, n_blocks, 256 // group_size], the s, up to 15. ``even``: an even
    number of each eight weights is negative.
    """

    name: str
    bits: int
    bits_per_weight: float
    group_size: int
    unit: float
    even: bool
    block_size: int = SUPER_BLOCK
    symmetric: bool = True

    @cached_property
    def words(self) -> Words:
        """Of gguf-py's table."""
        import gguf.quants

        table = getattr(gguf.quants, self.name.upper())
        table.init_grid()
        book = np.ascontiguousarray(table.grid.reshape(table.grid_shape).T, np.float32)
        codes = np.searchsorted(table.grid_map, book).astype(np.uint8)
        return Words(
            book, codes, np.uint8(1 << int(codes.max()).bit_length()), SIGNS_TOGETHER if self.even else len(book), self.even
        )

    @cached_property
    def levels(self) -> F32:
        """F32[n] by code; 0 for a code that no word has."""
        magnitudes = np.zeros(self.words.minus, np.float32)
        magnitudes[self.words.codes] = self.words.book
        return np.concatenate([magnitudes, -magnitudes])

    @cached_property
    def formula(self) -> Formula:
        """See Grid."""
        return Formula(self.levels, np.zeros(0, np.uint8), True, self.words)

    def fit(self, blocks: F32, importance: F32 | None = None) -> Params:
        """Params of least error; without ``importance`` every weight counts alike."""
        return fit_turned(blocks, np.ones(1, np.float32) if importance is None else importance, self.group_size, self._fit)

    def exact(self, blocks: F32) -> Params | None:
        """Not looked for: a scale is a product of two."""
        return None

    def _fit(self, x: F32, w: F32) -> Params:
        """F32[group, groups, n] twice -> params [n] and [groups, n]."""
        return _Spelling(self, *(np.ascontiguousarray(value.transpose(1, 2, 0)) for value in (x, w))).params()

    def scale_zero(self, params: Params) -> tuple[F32, F32]:
        """(d * unit * (2 s + 1), 0) as F32[..., groups]; no product is rounded."""
        d = params["d"].astype(np.float32)[..., None] * np.float32(self.unit)
        scale = d * (2 * params["scales"].astype(np.float32) + 1)
        return scale, np.zeros_like(scale)

    def encode(self, x: F32, scale: F32, zero: F32, importance: F32 | None = None) -> U8:
        """Codes of the nearest words along the last axis, which begins with a word; what it lacks at its end is 0."""
        return encoded(self.words, x, scale, np.ones(1, np.float32) if importance is None else felt(importance))

    def spelled(self, x: F32, w: F32, scale: F32) -> U8:
        """Codes of the nearest words, U8[n, dims], of F32[n, dims] twice and F32[n]."""
        return spelled(self.words, x, w, scale)

    def decode(self, codes: U8, scale: F32, zero: F32) -> F32:
        """``scale * level[q]`` (``dequantize_row_iq3_s`` and its kin)."""
        return scale * self.levels[codes]


@dataclass(frozen=True)
class _Spelling:
    """The fit of one slice: x and w F32[groups, n, group]."""

    grid: GgmlLattice
    x: F32
    w: F32

    def params(self) -> Params:
        """The best scale of each group, the best d for these, then whole numbers beside them and d again."""
        scale, curvature = self._best_scale()
        d = to_float16(best_scale(scale, curvature, ODD, ODD.high * CUTS)[0] / np.float32(self.grid.unit))
        odd = ODD(ratio(scale, self._unit(d)))
        for _ in range(POLISHES):
            d, odd = self._polish(d, odd)
        return {"d": d, "scales": ((odd - 1) / 2).astype(np.uint8)}

    def _best_scale(self) -> tuple[F32, F32]:
        """(s, sum(w l**2)) F32[groups, n] of least error: from the starts, and once more from the best."""
        top = self.grid.words.book.max()
        extreme = np.abs(self.x).max(-1) / top
        best, scale, curvature = np.full(extreme.shape, np.inf, np.float32), extreme, np.zeros_like(extreme)
        for start in (*STARTS, top / self.grid.words.book.min(), None):  # the last but one is for weights of one size
            cross, square = self._moments(scale if start is None else extreme * np.float32(start))
            own = ratio(cross, square)
            better = -own * cross < best  # the loss without its constant sum(w x**2)
            best, scale, curvature = (
                np.where(better, new, old) for new, old in ((-own * cross, best), (own, scale), (square, curvature))
            )
        return scale, curvature

    def _polish(self, d: Array, odd: F32) -> tuple[Array, F32]:
        """(d, odd) that leave no larger error: each whole number one up or down, then d by least squares."""
        unit = self._unit(d)
        cross, square = self._moments(unit * odd)
        best = self._loss(unit * odd, cross, square)
        kept = odd
        for step in (-2, 2):
            trial = np.clip(odd + np.float32(step), ODD.low, ODD.high)
            moments = self._moments(unit * trial)
            loss = self._loss(unit * trial, *moments)
            better = loss < best
            kept, best, cross, square = (
                np.where(better, new, old)
                for new, old in ((trial, kept), (loss, best), (moments[0], cross), (moments[1], square))
            )
        other = to_float16(ratio((kept * cross).sum(0), (kept * kept * square).sum(0)) / np.float32(self.grid.unit))
        better = self._loss(self._unit(other) * kept, cross, square).sum(0) < best.sum(0)
        return np.where(better, other, d), kept

    def _unit(self, d: Array) -> F32:
        """What an odd number of ``d`` F16[n] stands for."""
        return d.astype(np.float32) * np.float32(self.grid.unit)

    def _moments(self, scale: F32) -> tuple[F32, F32]:
        """Sums over each group of w x l and w l**2, F32[groups, n], l the levels of the nearest words at ``scale``."""
        dims = self.grid.words.dims
        x, w = (value.reshape(-1, dims) for value in (self.x, self.w))
        levels = self.grid.levels[self.grid.spelled(x, w, np.repeat(scale, self.grid.group_size // dims))].reshape(self.x.shape)
        weighed = self.w * levels
        return np.einsum("gnk,gnk->gn", weighed, self.x), np.einsum("gnk,gnk->gn", weighed, levels)

    @staticmethod
    def _loss(scale: F32, cross: F32, square: F32) -> F32:
        """The weighted squared error of each group, less what no scale changes."""
        return scale * (scale * square - 2 * cross)


LATTICE_GRIDS = (
    GgmlLattice("iq2_xxs", 2, 2.0625, 32, 0.125, even=True),
    GgmlLattice("iq2_xs", 2, 2.3125, 16, 0.125, even=True),
    GgmlLattice("iq2_s", 2, 2.5625, 16, 0.125, even=False),
    GgmlLattice("iq3_xxs", 3, 3.0625, 32, 0.25, even=True),
    GgmlLattice("iq3_s", 3, 3.4375, 32, 1.0, even=False),
)
