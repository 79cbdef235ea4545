"""Loops over single weights, compiled by numba: they need no interpreter, so threads run them side by side.

Nothing is reordered: sums are added up weight by weight, as numpy would. The machine code is kept beside this file, or in the
user's cache. Importing this takes a third of a second, so it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from numba import njit

from quantize import types
from quantize.formula import Channels, Formula, Words
from quantize.types import F32, U8

Kernel = TypeVar("Kernel", bound=Callable[..., object])
TINY = np.float32(types.TINY)
REFINEMENTS = 2  # a least-squares scale gives other codes, and these another scale
WIDTH = 512  # output channels at a time: their steps stay in the cache
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
LEAST, MOST, MIDDLE = np.float32(-128), np.float32(127.5), np.float32(256)  # of a table of half steps


def compiled(function: Kernel) -> Kernel:
    """Machine code, kept where there is a place for it."""
    try:
        made: Kernel = njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # no place for machine code can be written
        made = njit(function, nogil=True, error_model="numpy")
    return made


class Groups(NamedTuple):
    """Groups whose params are searched: weights, what they matter, and the product of both, F32[group, n] each.

    The codes that are tried are ``round((x - bottom) * inverse)``, from ``low`` to ``high``, F32[n] each; or the levels of
    ``table`` F32[512] by half steps from -128, which is empty where codes are whole numbers.
    """

    x: F32
    w: F32
    wx: F32
    inverse: F32
    bottom: F32
    low: F32
    high: F32
    table: F32


@compiled
def _ratio(numerator: np.float32, denominator: np.float32) -> np.float32:
    return numerator / denominator if abs(denominator) >= TINY else ZERO


@compiled
def _moments(groups: Groups, sums: F32) -> None:
    """Writes the sums over each group of w q, w x q and w q**2, F32[3, n]."""
    x, w, wx = groups.x, groups.w, groups.wx
    n = x.shape[1]
    for i in range(n):
        sums[0, i] = sums[1, i] = sums[2, i] = ZERO
    for g in range(len(x)):
        if len(groups.table):
            for i in range(n):
                t = x[g, i] * groups.inverse[i]
                t = LEAST if t < LEAST else MOST if t > MOST else t
                q = groups.table[int(t * TWO + MIDDLE)]
                sums[1, i] += wx[g, i] * q
                sums[2, i] += w[g, i] * q * q
        else:
            for i in range(n):
                q = np.rint((x[g, i] - groups.bottom[i]) * groups.inverse[i])
                q = groups.low[i] if q < groups.low[i] else groups.high[i] if q > groups.high[i] else q
                sums[0, i] += w[g, i] * q
                sums[1, i] += wx[g, i] * q
                sums[2, i] += w[g, i] * q * q


@compiled
def best_scale(groups: Groups, extreme: F32, starts: F32, found: F32) -> None:
    """See ``least_squares.best_scale``. ``found`` F32[3, n] is loss, scale and sum of w q**2; ``extreme`` F32[n] turned over."""
    sums = np.empty_like(found)
    for turn in range(len(starts) + REFINEMENTS):
        for i in range(len(extreme)):
            groups.inverse[i] = starts[turn] * extreme[i] if turn < len(starts) else _ratio(ONE, found[1, i])
        _moments(groups, sums)
        for i in range(len(extreme)):
            scale = _ratio(sums[1, i], sums[2, i])
            if -sums[1, i] * scale < found[0, i]:  # the loss without its constant sum(w x**2)
                found[0, i], found[1, i], found[2, i] = -sums[1, i] * scale, scale, sums[2, i]


@compiled
def best_line(groups: Groups, whole: F32, ceiling: np.float32, starts: F32, found: F32) -> None:
    """See ``least_squares.best_line``. ``found`` F32[4, n]: loss, scale, low, sum of w q**2.

    ``whole`` F32[4, n]: sums of w and of w x, the lowest weight, and the range turned over.
    """
    sums = np.empty((3, whole.shape[1]), np.float32)
    for turn in range(len(starts) + REFINEMENTS):
        for i in range(whole.shape[1]):
            first = turn < len(starts)
            groups.inverse[i] = starts[turn] * whole[3, i] if first else _ratio(ONE, found[1, i])
            groups.bottom[i] = whole[2, i] if first else found[2, i]
        _moments(groups, sums)
        for i in range(whole.shape[1]):
            sum_w, sum_x, q, xq, qq = whole[0, i], whole[1, i], sums[0, i], sums[1, i], sums[2, i]
            scale = _ratio(sum_w * xq - sum_x * q, sum_w * qq - q * q)
            low = _ratio(sum_x - scale * q, sum_w)
            if low > ceiling:
                scale, low = _ratio(xq, qq), ceiling
            loss = scale * (scale * qq - TWO * xq) + low * (low * sum_w - TWO * sum_x) + TWO * scale * low * q
            if scale > 0 and loss < found[0, i]:
                found[0, i], found[1, i], found[2, i], found[3, i] = loss, scale, low, qq


@compiled
def best_centred(groups: Groups, ends: F32, top: np.float32, starts: F32, found: F32) -> None:
    """See ``least_squares.best_centred``. ``found`` F32[3, n]: loss, scale, zero.

    ``ends`` F32[3, n]: the range turned over, and the lowest and the highest weight in units of the range.
    """
    sums, before = np.empty_like(found), np.empty_like(found)
    for turn in range(2 * len(starts) + 3 * REFINEMENTS):
        beside = (turn - 2 * len(starts)) % 3  # a refinement tries the zero as it is, one less and one more
        for i in range(ends.shape[1]):
            if beside == 0:
                before[1, i], before[2, i] = found[1, i], found[2, i]
            if turn < 2 * len(starts):
                start = starts[turn % len(starts)]
                groups.inverse[i] = start * ends[0, i]
                zero = np.rint(-ends[1, i] * start if turn < len(starts) else top - ends[2, i] * start)
            else:
                groups.inverse[i] = _ratio(ONE, before[1, i])
                zero = before[2, i] + (ZERO if beside == 0 else -ONE if beside == 1 else ONE)
            zero = ZERO if zero < ZERO else top if zero > top else zero
            groups.low[i], groups.high[i] = -zero, top - zero
        _moments(groups, sums)
        for i in range(ends.shape[1]):
            scale = _ratio(sums[1, i], sums[2, i])
            if -sums[1, i] * scale < found[0, i]:  # the loss without its constant sum(w x**2)
                found[0, i], found[1, i], found[2, i] = -sums[1, i] * scale, scale, -groups.low[i]


@compiled
def round_in_turn(these: Channels, formula: Formula, first: int, last: int) -> None:
    """See ``rounding.in_turn``."""
    top, none = np.float32(len(formula.levels) - 1), np.float32(np.inf)
    wanted = np.empty(WIDTH, np.float32)
    for left in range(0, these.wanted.shape[1], WIDTH):
        width = min(WIDTH, these.wanted.shape[1] - left)
        for i in range(first, last):
            for j in range(width):
                wanted[j] = these.wanted[i, left + j]
            for k in range(i):
                share = these.mix[i, k]
                for j in range(width):
                    wanted[j] -= share * these.steps[k, left + j]
            if len(formula.table):
                for j in range(width):
                    scale = these.scale[i, left + j]
                    t = _ratio(wanted[j], scale)
                    t = LEAST if t < LEAST else MOST if t > MOST else t
                    code = formula.table[int(t * TWO + MIDDLE)]
                    these.codes[i, left + j] = code
                    these.values[i, left + j] = formula.levels[code] * scale
            else:
                for j in range(width):
                    scale, zero = these.scale[i, left + j], these.zero[i, left + j]
                    shift, base = (zero, ZERO) if formula.centred else (ZERO, zero)
                    q = np.rint((wanted[j] - base) / (scale if scale != 0 else none)) + shift
                    q = ZERO if q < ZERO else top if q > top else q
                    these.codes[i, left + j] = np.uint8(q)
                    these.values[i, left + j] = (q - shift) * scale + base
            for j in range(width):
                held = these.held[i, left + j] if len(these.held) else wanted[j]
                these.steps[i, left + j] = held - these.values[i, left + j]


class Spelled(NamedTuple):
    """Weights that are encoded together, and what each matters, F32[n, dims] both; their ``scale`` F32[n]."""

    x: F32
    w: F32
    scale: F32


@compiled
def nearest_words(these: Spelled, words: Words, codes: U8) -> None:
    """Writes the ``codes`` U8[n, dims] that minimize ``sum(w (scale * level - x)**2)`` of each row.

    Every word's cost is found; and with one negative sign too many, that of every word with the sign turned that costs least
    to turn. Of words that cost the same the first is taken.
    """
    length, n_words = words.book.shape
    cost, turned = np.empty(n_words, np.float32), np.empty(n_words, np.float32)
    square, cross = np.empty(length, np.float32), np.empty(length, np.float32)
    for row in range(len(codes)):
        negative, place, more, other = 0, -1, ZERO, 0
        for i in range(words.dims):
            negative += these.x[row, i] < 0
        odd = words.even and negative % 2 == 1
        for left in range(0, words.dims, length):
            for i in range(length):
                weight = these.w[row, left + i] * these.scale[row]
                square[i], cross[i] = weight * these.scale[row], -TWO * weight * abs(these.x[row, left + i])
            _costs(words.book, square, cross, cost)
            word = _least(cost)
            _spell(these.x[row], words, left, word, codes[row])
            if odd:
                _turn(words.book, cross, cost, turned)
                trial = _least(turned)
                if place < 0 or turned[trial] - cost[word] < more:
                    place, more, other = left, turned[trial] - cost[word], trial
        if odd:
            _spell(these.x[row], words, place, other, codes[row])
            sign, least = 0, np.float32(np.inf)
            for i in range(length):
                share = abs(these.x[row, place + i]) * these.w[row, place + i] * words.book[i, other]
                if share < least:
                    sign, least = i, share
            codes[row, place + sign] ^= words.minus


@compiled
def _costs(book: F32, square: F32, cross: F32, cost: F32) -> None:
    """Of each word g: ``sum(g * (square * g + cross))``, four weights at a time."""
    for i in range(0, len(book), 4):
        a0, a1, a2, a3 = square[i], square[i + 1], square[i + 2], square[i + 3]
        b0, b1, b2, b3 = cross[i], cross[i + 1], cross[i + 2], cross[i + 3]
        for k in range(len(cost)):
            g0, g1, g2, g3 = book[i, k], book[i + 1, k], book[i + 2, k], book[i + 3, k]
            share = g0 * (a0 * g0 + b0) + g1 * (a1 * g1 + b1) + g2 * (a2 * g2 + b2) + g3 * (a3 * g3 + b3)
            cost[k] = share if i == 0 else cost[k] + share


@compiled
def _turn(book: F32, cross: F32, cost: F32, turned: F32) -> None:
    """The costs with another sign at the weight where that costs least."""
    for i in range(len(book)):
        share = -TWO * cross[i]
        for k in range(len(cost)):
            more = share * book[i, k]
            turned[k] = more if i == 0 or more < turned[k] else turned[k]
    for k in range(len(cost)):
        turned[k] += cost[k]


@compiled
def _least(cost: F32) -> int:
    """Where the first of the least is."""
    word = 0
    for k in range(1, len(cost)):
        if cost[k] < cost[word]:
            word = k
    return word


@compiled
def _spell(x: F32, words: Words, left: int, word: int, codes: U8) -> None:
    """Writes the codes of a word from ``left`` on, with the signs of ``x``."""
    for i in range(len(words.book)):
        codes[left + i] = words.codes[i, word] + (words.minus if x[left + i] < 0 else np.uint8(0))
