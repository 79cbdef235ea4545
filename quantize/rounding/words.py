"""Input channels rounded several at a time: where a word of neighbouring codes is stored, GPTQ and its polish choose it whole.

What errors d of a word's channels cost is a form d' M d. GPTQ's M is what is left once later channels have made up for them,
the polish's the Hessian's corner. The word taken is the nearest under M's diagonal: looking further under M itself, by
majorization, lowered no loss by more than .3 %. Pairs are few enough to try each under M itself.
"""

from __future__ import annotations

import numpy as np

from quantize.formula import Channels
from quantize.types import F32, U8, Array, Axis, Grid

NO_ZERO = np.zeros(1, np.float32)  # levels have their own


def dims_of(grid: Grid, axis: Axis) -> int:
    """Neighbouring input channels that are rounded together."""
    return grid.formula.dims if axis is Axis.PER_OC else 1


def words_first(diagonal: Array, dims: int) -> Array:
    """Input channels intp[IC] in words of ``dims`` neighbours, by falling sum of ``diagonal`` [IC]; an incomplete one is last."""
    whole = len(diagonal) // dims * dims
    words = np.argsort(-diagonal[:whole].reshape(-1, dims).sum(1), kind="stable")
    return np.concatenate([(words[:, None] * dims + np.arange(dims)).ravel(), np.arange(whole, len(diagonal))])


def round_words(these: Channels, grid: Grid, tolls: F32) -> None:
    """See ``round_in_turn``: all channels, word by word; ``tolls`` F32[n] is what a unit of a channel's squared step costs.

    A step from ``held`` is taken only where it lowers the cost.
    """
    words = grid.formula.words
    if words is not None and not words.minus:
        from quantize import pair_kernels

        pair_kernels.round_pairs(these, words, grid.formula.levels, np.ascontiguousarray(tolls))
        return
    for start in range(0, len(tolls), grid.formula.dims):
        own = slice(start, start + grid.formula.dims)
        wanted = these.wanted[own] - these.mix[own, :start] @ these.steps[:start]
        choose = _moved if len(these.held) else _absorbed
        these.codes[own], these.values[own], these.steps[own] = choose(these, grid, own, wanted, tolls[own])


Chosen = tuple[U8, F32, F32]  # codes, values, steps


def _absorbed(these: Channels, grid: Grid, own: slice, wanted: F32, tolls: F32) -> Chosen:
    """GPTQ's: the steps are those that a channel's later neighbours see."""
    back = np.linalg.inv(np.tril(these.mix[own, own], -1) + np.eye(len(tolls), dtype=np.float32))
    codes, values = _nearest(grid, wanted, these.scale[own], tolls @ np.square(back))
    return codes, values, back @ (wanted - values)


def _moved(these: Channels, grid: Grid, own: slice, wanted: F32, tolls: F32) -> Chosen:
    """The polish's: from ``held``, whose codes are in place."""
    held, corner = these.held[own], -these.mix[own, own] * tolls[:, None]
    codes, values = _nearest(grid, wanted, these.scale[own], tolls)
    move, slope = values - held, tolls[:, None] * (held - wanted)
    better = np.einsum("in,in->n", move, corner @ move + 2 * slope) < 0
    values = np.where(better, values, held)
    return np.where(better, codes, these.codes[own]), values, held - values


def _nearest(grid: Grid, wanted: F32, scale: F32, weights: F32) -> tuple[U8, F32]:
    """(codes, values) [dims, n] of the words nearest to ``wanted`` F32[dims, n]."""
    codes = grid.encode(wanted.T, scale.T, NO_ZERO, weights).T
    return codes, grid.decode(codes, scale, NO_ZERO)
