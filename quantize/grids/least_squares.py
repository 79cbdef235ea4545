"""Scales and minimums of many groups at once, by weighted least squares: what ggml-quants.c searches one block at a time.

Arrays are turned, F32[group, ...]: a step is one pass over contiguous memory, and a sum over a group adds whole rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quantize.grids.importance import weighed
from quantize.types import F32, U8, Array, Params
from quantize.workers import in_threads, threads

SLICE = 1 << 16  # weights fitted at a time: they and a few copies stay in the cache
TINY = 2.0**-100  # times a start, its reciprocal is still a float32; no file stores a scale that small
REFINEMENTS = 2  # a least-squares scale gives other codes, and these another scale

Nearest = Callable[[F32], F32]  # weight / scale -> the value of its code; it may overwrite its argument
Found = tuple[F32, ...]  # a loss, and what it belongs to


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
    # numpy lets go of the interpreter while it computes
    found = in_threads(fit_slice, starts) if min(len(starts), threads()) > 1 else [fit_slice(start) for start in starts]
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


def best_scale(x: F32, w: F32, nearest: Nearest, starts: Array) -> tuple[F32, F32]:
    """(s, sum(w l**2)) F32[n] that minimize ``sum(w (s l - x)**2)``, l = nearest(x / s); x and w F32[group, n].

    Each start puts the extreme value of x there (make_qx_quants, make_qp_quants); the best is refined.
    """
    low, high = x.min(0), x.max(0)
    wx = w * x

    def attempt(inverse: F32) -> Found:
        values = nearest(x[:, None] * inverse)
        projected, square = np.einsum("gn,gsn->sn", wx, values), np.einsum("gn,gsn,gsn->sn", w, values, values)
        scale = ratio(projected, square)
        return _first_best(-projected * scale, scale, square)  # the loss without its constant sum(w x**2)

    inverse = reciprocal(np.where(-low > high, low, high))
    found: Found = (np.zeros_like(low),) * 3  # all zero
    for some in _portions(starts, x):
        found = _better(attempt(some * inverse), found)
    for _ in range(REFINEMENTS):
        found = _better(attempt(reciprocal(found[1])[None]), found)
    _, scale, curvature = found
    return scale, curvature


def best_line(x: F32, w: F32, top: int, starts: Array, ceiling: float = 0.0) -> tuple[F32, F32, F32]:
    """(s >= 0, low <= ceiling, sum(w q**2)) F32[n] that minimize ``sum(w (s q + low - x)**2)``, q = nearest code in 0..top.

    Each start spreads the range over that many codes (make_qkx3_quants); the best is refined. ``ceiling``: 0, or infinity.
    """
    floor = np.minimum(x.min(0), np.float32(ceiling))
    wx = w * x
    sum_w, sum_x = w.sum(0), wx.sum(0)

    def attempt(inverse: F32, bottom: F32) -> Found:
        q = nearest_code(x[:, None], inverse, bottom, top)
        sum_q, sum_xq = np.einsum("gn,gsn->sn", w, q), np.einsum("gn,gsn->sn", wx, q)
        sum_qq = np.einsum("gn,gsn,gsn->sn", w, q, q)
        s = ratio(sum_w * sum_xq - sum_x * sum_q, sum_w * sum_qq - sum_q * sum_q)
        m = ratio(sum_x - s * sum_q, sum_w)
        s, m = np.where(m > ceiling, ratio(sum_xq, sum_qq), s), np.minimum(m, np.float32(ceiling))
        loss = s * (s * sum_qq - 2 * sum_xq) + m * (m * sum_w - 2 * sum_x) + 2 * s * m * sum_q
        return _first_best(np.where(s > 0, loss, np.inf), s, m, sum_qq)

    low = np.minimum(ratio(sum_x, sum_w), np.float32(ceiling))
    inverse = reciprocal(x.max(0) - floor)
    found: Found = (low * (low * sum_w - 2 * sum_x), np.zeros_like(low), low, np.zeros_like(low))  # all codes 0
    for some in _portions(starts, x):
        found = _better(attempt(some * inverse, floor), found)
    for _ in range(REFINEMENTS):
        found = _better(attempt(reciprocal(found[1])[None], found[2]), found)
    _, scale, low, curvature = found
    return scale, low, curvature


def best_centred(x: F32, w: F32, top: int, starts: Array) -> tuple[F32, F32]:
    """(s, z) F32[n], z whole in 0..top, that minimize ``sum(w (s (q - z) - x)**2)``, q = nearest code in 0..top.

    Each start spreads the range, zero included, over that many codes and keeps one of its ends; the best is refined.
    """
    low, high = np.minimum(x.min(0), 0), np.maximum(x.max(0), 0)
    wx = w * x

    def attempt(inverse: F32, zero: F32) -> Found:
        q = x[:, None] * inverse
        np.rint(q, out=q)
        q = np.clip(q, -zero, top - zero)
        projected, square = np.einsum("gn,gsn->sn", wx, q), np.einsum("gn,gsn,gsn->sn", w, q, q)
        scale = ratio(projected, square)
        return _first_best(-projected * scale, scale, zero)  # the loss without its constant sum(w x**2)

    inverse = reciprocal(high - low)
    found: Found = (np.zeros_like(low),) * 3  # all zero
    for some in _portions(starts, x):
        for zero in (-low * inverse * some, top - high * inverse * some):
            found = _better(attempt(some * inverse, np.clip(np.rint(zero), 0, top)), found)
    beside = np.array([[0], [-1], [1]], np.float32)
    for _ in range(REFINEMENTS):
        found = _better(attempt(reciprocal(found[1])[None], np.clip(found[2] + beside, 0, top)), found)
    _, scale, zero = found
    return scale, zero


def _portions(starts: Array, x: F32) -> list[F32]:
    """The starts as columns F32[some, 1]: as many at once as stay in the cache beside x, which for few blocks are all."""
    column = np.asarray(starts, np.float32)[:, None]
    step = max(1, SLICE // max(1, x.size))
    return [column[i : i + step] for i in range(0, len(column), step)]


def _first_best(*tried: F32) -> Found:
    """Of values [starts, n], the first of which is a loss, those with the least loss: [n] each."""
    if len(tried[0]) == 1:
        return tuple(values[0] for values in tried)
    best = tried[0].argmin(0)[None]
    return tuple(np.take_along_axis(values, best, 0)[0] for values in tried)


def _better(new: Found, old: Found) -> Found:
    """Elementwise the one with the smaller loss; the old one if equal."""
    better = new[0] < old[0]
    return tuple(np.where(better, one, other) for one, other in zip(new, old, strict=True))


def spreads(last: int) -> Array:
    """Starts for best_line with codes up to ``last``: min-max, then from cut ends to a last code that nothing reaches."""
    return np.concatenate([[last], np.linspace(last * 0.85 - 0.5, last + 1.2, 10)])


def nearest_code(x: F32, inverse: F32, low: F32, top: int) -> F32:
    """round((x - low) * inverse) in 0..top, as float."""
    q: F32 = (x - low) * inverse
    np.rint(q, out=q)
    clipped: F32 = np.clip(q, 0, top, out=q)
    return clipped


def whole_codes(t: F32, zero: F32 | float, top: int) -> U8:
    """round(t) + zero in 0..top; overwrites ``t``. Channels are encoded one by one, where np.clip's preamble would be felt."""
    np.rint(t, out=t)
    np.add(t, zero, out=t)
    np.maximum(t, 0, out=t)
    codes: U8 = np.minimum(t, top, out=t).astype(np.uint8)
    return codes


def whole_numbers(low: int, high: int) -> Nearest:
    """Nearest for codes that are the integers from ``low`` to ``high``."""

    def nearest(t: F32) -> F32:
        np.rint(t, out=t)
        clipped: F32 = np.clip(t, low, high, out=t)
        return clipped

    return nearest
