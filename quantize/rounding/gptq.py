"""GPTQ (arXiv 2210.17323) on any grid and either axis: round one input channel, let the others absorb its error.

::

    order: input channels by falling diag(H)          H = E[x xT] + damping * mean(diag H) * I
    U = upper Cholesky factor of H^-1, in that order
    for each channel j:   q_j = round(w_j);  e = (w_j - q_j) / U_jj;  w_k -= U_jk * e  for all later k

PER_OC: a group spans channels that are visited at different times, so its params are fitted up front on the original
weights ("static groups"). PER_IC: a group lies inside one channel and is fitted at that channel's turn (AdaDim, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from quantize.blocks import spread, to_blocks, to_rows
from quantize.rounding.rtn import block_importance
from quantize.types import F32, U8, Array, Axis, Grid, LayerStats, Params, QuantizedTensor

DAMPING = 0.01  # of the mean diagonal, as the paper
LAZY_COLUMNS = 128  # errors go to the columns beyond this block in one matrix product
TRIANGLE = 64  # triangles up to this size are inverted directly

RoundChannel = Callable[[int, F32], tuple[U8, F32]]  # (input channel, F32[OC]) -> codes, values


@dataclass(frozen=True)
class _Channels:
    """How one input channel is rounded, and the params that this leaves behind."""

    round: RoundChannel
    params: Callable[[], Params]


def gptq(name: str, weight: F32, grid: Grid, axis: Axis, stats: LayerStats | None) -> QuantizedTensor:
    """Quantize F32[OC, IC] so that the output error under ``stats.hessian`` F32[IC, IC] stays small."""
    assert stats is not None, f"{name}: GPTQ needs statistics"
    order, factor = _inverse_factor(_Shared(stats.hessian))
    fit_channels = _static_groups if axis is Axis.PER_OC else _groups_at_turn
    channels = fit_channels(weight, grid, block_importance(stats, grid, axis))
    work = np.ascontiguousarray(weight.T[order])  # [IC in visiting order, OC]: a channel is one contiguous row
    codes = np.empty((weight.shape[1], weight.shape[0]), np.uint8)
    for start in range(0, len(order), LAZY_COLUMNS):
        stop = min(start + LAZY_COLUMNS, len(order))
        errors = np.empty((stop - start, weight.shape[0]), np.float32)
        for i in range(start, stop):
            codes[order[i]], values = channels.round(int(order[i]), work[i])
            errors[i - start] = (work[i] - values) / factor[i, i]
            work[i + 1 : stop] -= np.outer(factor[i, i + 1 : stop], errors[i - start])
        work[stop:] -= factor[start:stop, stop:].T @ errors
    return QuantizedTensor(name, np.ascontiguousarray(to_rows(codes.T, axis)), axis, grid, channels.params())


@dataclass(frozen=True, eq=False)
class _Shared:
    """A Hessian F32[IC, IC] as a key: q, k and v come one after the other and share theirs; so do gate and up."""

    hessian: F32

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shared) and other.hessian is self.hessian

    def __hash__(self) -> int:
        return id(self.hessian)


@lru_cache(maxsize=4)  # the inputs of one decoder layer, whose linears are rounded side by side
def _inverse_factor(shared: _Shared) -> tuple[NDArray[np.intp], F32]:
    """Visiting order of the input channels and the upper Cholesky factor of the damped inverse in that order."""
    diagonal = np.diag(shared.hessian).astype(np.float64)
    order = np.argsort(-diagonal, kind="stable")
    damped = shared.hessian[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * diagonal.mean() + np.finfo(np.float32).tiny
    # Reversed, H = L LT; then H^-1 = (L^-1)T L^-1, and L^-1 reversed back is the upper factor: H itself is never inverted.
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    return order, np.ascontiguousarray(_invert_lower(lower)[::-1, ::-1], np.float32)


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


def _static_groups(weight: F32, grid: Grid, importance: F32) -> _Channels:
    params = grid.fit(to_blocks(weight, grid.block_size), importance)
    cols = weight.shape[1]
    scale, zero = (np.ascontiguousarray(spread(value, grid.group_size, cols).T) for value in grid.scale_zero(params))

    def round_channel(channel: int, values: F32) -> tuple[U8, F32]:
        codes = grid.encode(values, scale[channel], zero[channel])
        return codes, grid.decode(codes, scale[channel], zero[channel])

    return _Channels(round_channel, lambda: params)


def _groups_at_turn(weight: F32, grid: Grid, importance: F32) -> _Channels:
    fitted: dict[int, Params] = {}

    def round_channel(channel: int, values: F32) -> tuple[U8, F32]:
        fitted[channel] = params = grid.fit(to_blocks(values, grid.block_size), importance)
        scale, zero = (spread(value, grid.group_size, len(values)) for value in grid.scale_zero(params))
        codes = grid.encode(values, scale, zero)
        return codes, grid.decode(codes, scale, zero)

    def params() -> dict[str, Array]:
        return {key: np.stack([fitted[i][key] for i in range(weight.shape[1])]) for key in fitted[0]}

    return _Channels(round_channel, params)
