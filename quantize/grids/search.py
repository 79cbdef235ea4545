"""Choosing a block's params by the error they leave, where min-max is only the first candidate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quantize.types import F32, Array, Grid, Params

SLICE = 1 << 16  # weights tried at a time: all candidates of a slice stay in the cache


def least_error(grid: Grid, blocks: F32, importance: F32, candidates: Callable[[F32], Params]) -> Params:
    """Per block the candidate with the least ``sum(importance * (decode(encode(x)) - x)**2)``; the first wins a tie.

    ``blocks`` F32[..., block_size]; ``importance`` broadcasts to it. ``candidates`` maps a slice of blocks F32[n,
    block_size] to params with a leading axis of candidates, each [candidates, n, ...]. A block is one group.
    """
    flat = blocks.reshape(-1, blocks.shape[-1])
    weights = np.broadcast_to(importance, blocks.shape).reshape(flat.shape)
    step = max(1, SLICE // blocks.shape[-1])
    found = [_best(grid, flat[i : i + step], weights[i : i + step], candidates) for i in range(0, len(flat), step)]
    lead = blocks.shape[:-1]
    joined = {key: np.concatenate([params[key] for params in found]) for key in found[0]}
    return {key: value.reshape(*lead, *value.shape[1:]) for key, value in joined.items()}


def _best(grid: Grid, blocks: F32, importance: F32, candidates: Callable[[F32], Params]) -> dict[str, Array]:
    params = candidates(blocks)
    scale, zero = grid.scale_zero(params)
    error = grid.decode(grid.encode(blocks, scale, zero), scale, zero)
    error -= blocks
    loss = np.einsum("cni,cni,ni->cn", error, error, importance)
    best, index = loss.argmin(0), np.arange(len(blocks))
    return {key: value[best, index] for key, value in params.items()}
