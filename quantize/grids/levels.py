"""Grids that are a scale times a level of a short table: of single weights, or of points of the plane for two neighbours.

lm2, lm3 and lm4 (Lloyd-Max), hg2 and hg3 (pairs, after HIGGS, arXiv 2411.17525) are made for weights of a normal distribution by
``tools/make_levels.py``. A tensor may also have levels of its own. A code here is that of one weight: of a pair its two
coordinates, of which not all go together. So decoding knows of no pairs, and encoding finds the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from quantize.errors import ConfigError
from quantize.formula import Formula, Words
from quantize.grids.codebook import Codebook
from quantize.grids.exact import either_sign, exact_scale
from quantize.grids.ggml import to_float16
from quantize.grids.importance import felt
from quantize.grids.least_squares import best_scale, fit_turned, ratio, reciprocal
from quantize.grids.level_tables import TABLES, Table
from quantize.grids.spelling import encoded, spelled
from quantize.types import F32, U8, Array, Params

OWN = "levels"  # what a grid is called whose levels are a tensor's own
MOST = 127
LEAST_GROUP = 32
WIDTHS = {1: (2, 3, 4), 2: (2, 3)}  # bits of a weight by the number of weights that are encoded together
STARTS = 0.45 * 1.4 ** np.arange(6)  # of the levels' root mean square: where a search puts that of a group
NEARER = (0.84, 0.9, 0.95, 1.05, 1.1, 1.16)  # of the best of these: scales alone settle slowly where levels are many
ITERATIONS = 30  # of Lloyd's for levels of a tensor's own


@dataclass(frozen=True)
class Levels:
    """``w = d * level[q]``; params: ``d`` F16[rows, n_groups].

    ``levels``: a table of ``2**bits`` in rising order, or two of ``4**bits``, the coordinates of points. ``bits``: of a weight.
    """

    name: str
    bits: int
    levels: Table
    group_size: int = LEAST_GROUP

    def __post_init__(self) -> None:
        dims, count = len(self.levels), 1 << self.bits * len(self.levels)
        if self.bits not in WIDTHS.get(dims, ()) or any(len(side) != count for side in self.levels):
            raise ConfigError(f"grid {self.name}: {[len(side) for side in self.levels]} levels are none of {self.bits} bits")
        if max(abs(level) for side in self.levels for level in side) not in range(1, MOST + 1):
            raise ConfigError(f"grid {self.name}: levels reach from -{MOST} to {MOST}, and are not all 0")
        if dims == 1 and list(self.levels[0]) != sorted(self.levels[0]):
            raise ConfigError(f"grid {self.name}: levels rise with their codes")
        if self.group_size < LEAST_GROUP or self.group_size & (self.group_size - 1):
            raise ConfigError(f"group size {self.group_size}: grid {self.name} has powers of two of at least {LEAST_GROUP}")

    @property
    def dims(self) -> int:
        """Neighbouring weights that are encoded together."""
        return len(self.levels)

    @property
    def block_size(self) -> int:
        """Groups are fitted one by one."""
        return self.group_size

    @property
    def symmetric(self) -> bool:
        """Levels have their own zero."""
        return True

    @property
    def bits_per_weight(self) -> float:
        """Codes and a scale for each group."""
        return self.bits + 16 / self.group_size

    def grouped(self, group_size: int) -> Levels:
        """The same levels with other groups."""
        return replace(self, group_size=group_size)

    @cached_property
    def values(self) -> F32:
        """F32[n]: level of each code; of pairs every coordinate that there is, in rising order."""
        table = np.array(self.levels, np.float32)
        return table[0] if self.dims == 1 else np.unique(table)

    @cached_property
    def formula(self) -> Formula:
        """See Grid."""
        if self.dims == 1:
            return Formula(self.values, self._book.codes, centred=True)
        book = np.array(self.levels, np.float32)
        words = Words(book, np.searchsorted(self.values, book).astype(np.uint8), np.uint8(0), self.dims, False)
        return Formula(self.values, np.zeros(0, np.uint8), True, words)

    @cached_property
    def _book(self) -> Codebook:
        return Codebook(self.levels[0])

    def fit(self, blocks: F32, importance: F32 | None = None) -> Params:
        """The d of least error; without ``importance`` every weight counts alike. A weight of 0, as which a ragged group is
        filled up, counts not at all: there may be no level near it."""
        counts = blocks != 0
        size = self.group_size
        if blocks.shape[-2:-1] == (1,):  # whole rows, without what they are filled up with
            used = np.flatnonzero(counts.any(tuple(range(counts.ndim - 1))))
            size = min(size, -(-(used.max(initial=0) + 1) // self.dims) * self.dims)
        counted = (counts if importance is None else importance * counts).astype(np.float32)
        return fit_turned(blocks[..., :size], counted[..., :size], size, self._fit)

    def exact(self, blocks: F32) -> Params | None:
        """See Grid. Of pairs not looked for. A 0 may be filling, so it is left to whoever compares."""
        if self.dims > 1:
            return None
        extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
        filled = np.where(blocks == 0, extreme, blocks)
        d = exact_scale(filled, either_sign(self.levels[0]), self._book.nearest.__call__, to_float16)
        return None if d is None else {"d": d}

    def _fit(self, x: F32, w: F32) -> Params:
        """F32[group, 1, n] twice -> params [n]."""
        x, w = x[:, 0], w[:, 0]
        size = np.sqrt(ratio((w * np.square(x)).sum(0), w.sum(0)))
        own = np.sqrt(np.square(np.array(self.levels, np.float64)).mean())
        mirrored = set(self.values) == set(-self.values)
        starts = np.outer([own] if mirrored else [own, -own], STARTS).ravel()
        if self.dims > 1:
            return {"d": to_float16(self._best_scale(x, w, size, starts))}
        scale, _ = best_scale(x, w, self._book.nearest, starts, reciprocal(size))
        return {"d": to_float16(best_scale(x, w, self._book.nearest, np.array([1, *NEARER]), reciprocal(scale))[0])}

    def _best_scale(self, x: F32, w: F32, size: F32, starts: Array) -> F32:
        """Of pairs, F32[n]: from the starts, nearer to the best of them, and refined."""
        x, w = (np.ascontiguousarray(value.T) for value in (x, w))
        best, scale = np.full(len(x), np.inf, np.float32), np.zeros(len(x), np.float32)

        def tried(trial: F32) -> tuple[F32, F32]:
            levels = self.values[self._spelled(x, w, trial)]
            cross, square = ((w * levels * other).sum(1) for other in (x, levels))
            own = ratio(cross, square)
            better = -own * cross < best  # the loss without its constant sum(w x**2)
            return np.where(better, -own * cross, best), np.where(better, own, scale)

        for start in starts:
            best, scale = tried(size / np.float32(start))
        first = scale
        for share in NEARER:
            best, scale = tried(first * np.float32(share))
        return tried(scale)[1]

    def _spelled(self, x: F32, w: F32, scale: F32) -> U8:
        """Codes of whole groups F32[n, group], each with a scale F32[n]."""
        assert self.formula.words is not None
        x_pairs, w_pairs = (value.reshape(-1, self.dims) for value in (x, w))
        return spelled(self.formula.words, x_pairs, w_pairs, np.repeat(scale, x.shape[1] // self.dims)).reshape(x.shape)

    def scale_zero(self, params: Params) -> tuple[F32, F32]:
        """(d, 0) as F32[..., 1]."""
        d = params["d"].astype(np.float32)[..., None]
        return d, np.zeros_like(d)

    def encode(self, x: F32, scale: F32, zero: F32, importance: F32 | None = None) -> U8:
        """Code of the nearest level; of a pair along the last axis those of the nearest point."""
        if self.formula.words is None:
            return self._book.encode(ratio(x, scale))
        return encoded(self.formula.words, x, scale, np.ones(1, np.float32) if importance is None else felt(importance))

    def decode(self, codes: U8, scale: F32, zero: F32) -> F32:
        """``d * level[q]``."""
        return scale * self.values[codes]

    def to_hex(self) -> str:
        """The table in digits, int8 after int8: as long for any levels, so that a file's size is known before they are."""
        return np.array(self.levels, np.int8).tobytes().hex()


def from_hex(digits: str, bits: int, group_size: int) -> Levels:
    """A tensor's own levels, as ``to_hex`` has them. Raises ValueError for what is no table of so many bits."""
    values = np.frombuffer(bytes.fromhex(digits), np.int8).tolist()
    if bits in WIDTHS[1] and len(values) == 1 << bits:
        return Levels(OWN, bits, (tuple(values),), group_size)
    half = len(values) // 2
    return Levels(OWN, bits, (tuple(values[:half]), tuple(values[half:])), group_size)


def own_levels(rows: F32, bits: int, group_size: int) -> Levels:
    """k-means of the weights of a tensor F32[rows, cols], each group by its root mean square: single levels, in whole numbers."""
    cols = rows.shape[1]
    spans = np.arange(0, cols, group_size)
    size = np.sqrt(np.add.reduceat(np.square(rows, dtype=np.float64), spans, axis=1) / np.diff([*spans, cols]))
    unit = np.repeat(size, np.diff([*spans, cols]), axis=1)
    x = np.sort((rows / np.where(unit > 0, unit, 1))[unit > 0])
    if not len(x):
        return LEVEL_GRIDS[bits - 2].grouped(group_size)
    sums = np.concatenate([[0], np.cumsum(x)])
    levels = np.quantile(x, (np.arange(1 << bits) + 0.5) / (1 << bits))
    for _ in range(ITERATIONS):
        ends = np.concatenate([[0], np.searchsorted(x, (levels[1:] + levels[:-1]) / 2), [len(x)]])
        counts = np.diff(ends)
        levels = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), levels)
    whole = np.rint(levels * (63 / np.abs(levels).max())).astype(int)
    return Levels(OWN, bits, (tuple(map(int, np.sort(whole))),), group_size)


LEVEL_GRIDS = tuple(Levels(name, int(name[-1]), table) for name, table in TABLES.items())
