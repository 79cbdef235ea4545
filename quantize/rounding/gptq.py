"""GPTQ (arXiv 2210.17323) on any grid and either axis: round one input channel, let the others absorb its error.

::

    order: input channels by falling diag(H)          H = E[x xT] + damping * mean(diag H) * I
    U = upper Cholesky factor of H^-1, in that order
    for each channel j:   q_j = round(w_j);  e = (w_j - q_j) / U_jj;  w_k -= U_jk * e  for all later k

PER_OC: a group spans channels that are visited at different times, so its params are fitted up front on the original
weights ("static groups"). PER_IC: a group lies inside one channel (AdaDim, section 3) and is fitted when the block of channels
that it is visited with begins, on weights that have absorbed the errors of all blocks before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantize.blocks import spread, to_blocks, to_rows
from quantize.rounding.in_turn import channels, round_in_turn
from quantize.rounding.rtn import block_importance
from quantize.rounding.words import dims_of, round_words, words_first
from quantize.types import F32, Array, Axis, Grid, InputStats, Params, QuantizedTensor, Visit
from quantize.workers import Once

DAMPING = 0.01  # of the mean diagonal, as the paper
FITTED_TOGETHER = 8  # channels: one by one is exact, eight times as slow, and .3 % better
LAZY_COLUMNS = 64  # errors go to the channels beyond this block in one matrix product
TRIANGLE = 64  # triangles up to this size are inverted directly


class _Groups(Protocol):
    """The scales and zeros of input channels on their way, and the params that they leave behind."""

    together: int  # channels whose scales are wanted at once

    def scale_zero(self, order: NDArray[np.intp], wanted: F32) -> tuple[F32, F32]:
        """Of the channels that are next, F32[n, OC] each; ``wanted`` F32[n, OC] is what they have become."""

    def params(self) -> Params:
        """Of the whole tensor."""


def gptq(nearest: QuantizedTensor, weight: F32, stats: InputStats) -> QuantizedTensor:
    """F32[OC, IC] on the grid and axis of ``nearest`` so that the output error under ``stats.hessian`` F32[IC, IC] stays small.

    Static groups are those of ``nearest``, the weight rounded so.
    """
    grid, axis = nearest.grid, nearest.axis
    dims = dims_of(grid, axis)
    order, factor = visit_of(stats.hessian, dims) if stats.visit is None or dims > 1 else stats.visit.value
    groups: _Groups
    if axis is Axis.PER_OC:
        groups = _StaticGroups(grid, nearest.params, weight.shape[1])
    else:
        groups = _GroupsInTurn(weight, grid, block_importance(stats, grid, axis))
    work = np.ascontiguousarray(weight.T[order])  # [IC in visiting order, OC]: a channel is one contiguous row
    codes = np.empty((weight.shape[1], weight.shape[0]), np.uint8)
    for start in range(0, len(order), LAZY_COLUMNS):
        block = slice(start, min(start + LAZY_COLUMNS, len(order)))
        shares = factor[block] / factor.diagonal()[block, None]
        these = channels(work[block], shares[:, block].T)
        for first in range(0, len(these.wanted), groups.together):
            turn = slice(first, first + groups.together)
            wanted = these.wanted[turn] - these.mix[turn, :first] @ these.steps[:first]
            these.scale[turn], these.zero[turn] = groups.scale_zero(order[block][turn], wanted)
            if dims == 1:
                round_in_turn(these, grid, first, first + len(wanted))
            else:
                round_words(these, grid, factor.diagonal()[block] ** -2)
        codes[order[block]] = these.codes
        work[block.stop :] -= shares[:, block.stop :].T @ these.steps
    return QuantizedTensor(nearest.name, np.ascontiguousarray(to_rows(codes.T, axis)), axis, grid, groups.params())


def with_visits(stats: Mapping[str, InputStats]) -> dict[str, InputStats]:
    """Each with a ``visit``, which all that share a Hessian share: it is made when the first of them is rounded."""
    shared, out = list[tuple[F32, Once[Visit]]](), {}
    for name, one in stats.items():
        visit = one.visit or next((visit for hessian, visit in shared if hessian is one.hessian), None)
        if visit is None:
            visit = Once(partial(visit_of, one.hessian))
            shared.append((one.hessian, visit))
        out[name] = replace(one, visit=visit)
    return out


def visit_of(hessian: F32, dims: int = 1, order: NDArray[np.intp] | None = None) -> Visit:
    """Of E[x xT] F32[IC, IC], of which ``dims`` neighbours are visited one after the other, or in another ``order`` intp[IC]."""
    diagonal = np.diag(hessian).astype(np.float64)
    order = words_first(diagonal, dims) if order is None else order
    damped = hessian[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * diagonal.mean() + np.finfo(np.float32).tiny
    # Reversed, H = L LT; then H^-1 = (L^-1)T L^-1, and L^-1 reversed back is the upper factor: H itself is never inverted.
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    return Visit(order, np.ascontiguousarray(_invert_lower(lower)[::-1, ::-1], np.float32))


def _invert_lower(lower: Array) -> Array:
    """Inverse of a lower triangular matrix by halves: ``[[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]``."""
    size = len(lower)
    if size <= TRIANGLE:
        return np.linalg.inv(lower)
    half, out = size // 2, np.zeros_like(lower)
    out[:half, :half] = _invert_lower(lower[:half, :half])
    out[half:, half:] = _invert_lower(lower[half:, half:])
    out[half:, :half] = -out[half:, half:] @ (lower[half:, :half] @ out[:half, :half])
    return out


class _StaticGroups:
    """PER_OC."""

    def __init__(self, grid: Grid, params: Params, cols: int) -> None:
        self.together, self._params = LAZY_COLUMNS, params
        self._scale, self._zero = (
            np.ascontiguousarray(spread(value, grid.group_size, cols).T) for value in grid.scale_zero(params)
        )

    def scale_zero(self, order: NDArray[np.intp], wanted: F32) -> tuple[F32, F32]:
        """See _Groups."""
        return self._scale[order], self._zero[order]

    def params(self) -> Params:
        """See _Groups."""
        return self._params


class _GroupsInTurn:
    """PER_IC."""

    def __init__(self, weight: F32, grid: Grid, importance: F32) -> None:
        self.together = FITTED_TOGETHER
        self._grid, self._importance, self._channels = grid, importance, weight.shape[1]
        self._params: dict[str, Array] = {}

    def scale_zero(self, order: NDArray[np.intp], wanted: F32) -> tuple[F32, F32]:
        """See _Groups."""
        fitted = self._grid.fit(to_blocks(wanted, self._grid.block_size), self._importance)
        for key, value in fitted.items():
            self._params.setdefault(key, np.empty((self._channels, *value.shape[1:]), value.dtype))[order] = value
        scale, zero = (spread(value, self._grid.group_size, wanted.shape[1]) for value in self._grid.scale_zero(fitted))
        return scale, zero

    def params(self) -> Params:
        """See _Groups."""
        return self._params
