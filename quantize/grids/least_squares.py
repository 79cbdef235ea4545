"""Scales and minimums of many groups at once, by weighted least squares: what ggml-quants.c searches one block at a time.

Arrays are turned, F32[group, ...]: a step is one pass over contiguous memory, and a sum over a group adds whole rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from quantize.formula import Formula
from quantize.grids.importance import weighed
from quantize.types import F32, TINY, U8, Array, Params
from quantize.workers import in_threads

if TYPE_CHECKING:
    from quantize import kernels

SLICE = 1 << 16  # weights fitted at a time: they and a few copies stay in the cache


class Nearest(NamedTuple):
    """The level nearest to weight / scale: a whole number from ``low`` to ``high``, or by ``table`` F32[512] of half steps."""

    low: int
    high: int
    table: F32 = np.zeros(0, np.float32)

    def __call__(self, t: F32) -> F32:
        """Elementwise; ``t`` is overwritten."""
        if len(self.table):
            return self.table.take(half_steps(t))
        np.rint(t, out=t)
        clipped: F32 = np.clip(t, self.low, self.high, out=t)
        return clipped


def half_steps(t: F32) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
    """Index of the half step [i / 2 - 128, (i + 1) / 2 - 128) that holds ``t``."""
    return (np.clip(t, -128, 127.5) * np.float32(2) + np.float32(256)).astype(np.intp)


def fit_turned(blocks: F32, importance: F32, group_size: int, fit: Callable[[F32, F32], Params]) -> Params:
    """Params [..., ...] of blocks F32[..., block_size] from ``fit`` on slices x, w F32[group_size, groups, n] -> [..., n].

    ``importance`` broadcasts to ``blocks``; ``weighed`` makes it w.
    """
    flat = blocks.reshape(-1, blocks.shape[-1])
    weights = np.broadcast_to(importance, blocks.shape).reshape(flat.shape)
    step = max(1, SLICE // blocks.shape[-1])

    def turned(values: F32) -> F32:
        return np.ascontiguousarray(values.reshape(len(values), -1, group_size).transpose(2, 1, 0))

    def fit_slice(start: int) -> Params:
        part = slice(start, start + step)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes infinite, and the pipeline names it
            return fit(*weighed(turned(flat[part]), turned(weights[part])))

    starts = range(0, len(flat), step)
    found = in_threads(fit_slice, starts) if len(starts) > 1 else [fit_slice(start) for start in starts]
    joined = {key: np.concatenate([np.moveaxis(params[key], -1, 0) for params in found]) for key in found[0]}
    return {key: value.reshape(*blocks.shape[:-1], *value.shape[1:]) for key, value in joined.items()}


def total(*factors: F32) -> F32:
    """Sum over the group of the product of two or three arrays F32[group, n] -> F32[n]."""
    names = ",".join(["gn"] * len(factors))
    summed: F32 = np.einsum(f"{names}->n", *factors)
    return summed


def ratio(numerator: Array, denominator: Array) -> F32:
    """numerator / denominator, and 0 where the denominator is 0 or nearly."""
    zero = np.abs(denominator) < TINY
    return np.where(zero, 0, numerator / np.where(zero, 1, denominator)).astype(np.float32)


def reciprocal(values: Array) -> F32:
    """1 / values, and 0 for 0: see ratio."""
    return ratio(np.ones_like(values), values)


def best_scale(x: F32, w: F32, nearest: Nearest, starts: Array, unit: F32 | None = None) -> tuple[F32, F32]:
    """(s, sum(w l**2)) F32[n] that minimize ``sum(w (s l - x)**2)``, l = nearest(x / s); x and w F32[group, n].

    Each start puts the extreme value of x there (make_qx_quants, make_qp_quants), or what ``unit`` F32[n] is turned over; the
    best is refined.
    """
    from quantize import kernels

    if unit is None:
        low, high = x.min(0), x.max(0)
        unit = reciprocal(np.where(-low > high, low, high))
    found = np.zeros((3, x.shape[1]), np.float32)  # all zero
    kernels.best_scale(_groups(x, w, nearest), unit, np.asarray(starts, np.float32), found)
    return found[1], found[2]


def best_line(x: F32, w: F32, top: int, starts: Array, ceiling: float = 0.0) -> tuple[F32, F32, F32]:
    """(s >= 0, low <= ceiling, sum(w q**2)) F32[n] that minimize ``sum(w (s q + low - x)**2)``, q = nearest code in 0..top.

    Each start spreads the range over that many codes (make_qkx3_quants); the best is refined. ``ceiling``: 0, or infinity.
    """
    from quantize import kernels

    groups, bound = _groups(x, w, Nearest(0, top)), np.float32(ceiling)
    sum_w, sum_x, floor = w.sum(0), groups.wx.sum(0), np.minimum(x.min(0), bound)
    low = np.minimum(ratio(sum_x, sum_w), bound)
    found = np.stack([low * (low * sum_w - 2 * sum_x), np.zeros_like(low), low, np.zeros_like(low)])  # all codes 0
    whole = np.stack([sum_w, sum_x, floor, reciprocal(x.max(0) - floor)])
    kernels.best_line(groups, whole, bound, np.asarray(starts, np.float32), found)
    return found[1], found[2], found[3]


def best_centred(x: F32, w: F32, top: int, starts: Array) -> tuple[F32, F32]:
    """(s, z) F32[n], z whole in 0..top, that minimize ``sum(w (s (q - z) - x)**2)``, q = nearest code in 0..top.

    Each start spreads the range, zero included, over that many codes and keeps one of its ends; the best is refined.
    """
    from quantize import kernels

    low, high = np.minimum(x.min(0), 0), np.maximum(x.max(0), 0)
    inverse = reciprocal(high - low)
    found = np.zeros((3, len(low)), np.float32)  # all zero
    ends = np.stack([inverse, low * inverse, high * inverse])
    kernels.best_centred(_groups(x, w, Nearest(0, top)), ends, np.float32(top), np.asarray(starts, np.float32), found)
    return found[1], found[2]


def _groups(x: F32, w: F32, nearest: Nearest) -> kernels.Groups:
    from quantize import kernels

    n = x.shape[1]
    inverse, bottom = np.zeros((2, n), np.float32)
    low, high = np.full(n, nearest.low, np.float32), np.full(n, nearest.high, np.float32)
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    return kernels.Groups(x, w, w * x, inverse, bottom, low, high, nearest.table)


def spreads(last: int) -> Array:
    """Starts for best_line with codes up to ``last``: min-max, then from cut ends to a last code that nothing reaches."""
    return np.concatenate([[last], np.linspace(last * 0.85 - 0.5, last + 1.2, 10)])


def nearest_code(x: F32, inverse: F32, low: F32, top: int) -> F32:
    """round((x - low) * inverse) in 0..top, as float."""
    q: F32 = (x - low) * inverse
    np.rint(q, out=q)
    clipped: F32 = np.clip(q, 0, top, out=q)
    return clipped


@cache
def whole_formula(bits: int, centred: bool) -> Formula:
    """Of codes that are their own levels."""
    return Formula(np.arange(1 << bits, dtype=np.float32), np.zeros(0, np.uint8), centred)


def whole_codes(t: F32, zero: F32 | float, top: int) -> U8:
    """round(t) + zero in 0..top; overwrites ``t``. Channels are encoded one by one, where np.clip's preamble would be felt."""
    np.rint(t, out=t)
    np.add(t, zero, out=t)
    np.maximum(t, 0, out=t)
    codes: U8 = np.minimum(t, top, out=t).astype(np.uint8)
    return codes
