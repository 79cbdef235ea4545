"""Loops over pairs of weights that are a point of a short table, compiled by numba as ``kernels`` are.

What a point (g, h) costs a pair is ``a g**2 + b g + c h**2 + d h + e g h``, its form [a, b, c, d, e]; many pairs at a time try
one point after the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantize.formula import Channels, Words
from quantize.kernels import TWO, WIDTH, ZERO, Spelled, compiled
from quantize.types import F32, U8


@compiled
def nearest_pairs(these: Spelled, words: Words, codes: U8) -> None:
    """Writes the ``codes`` U8[n, 2] that minimize ``sum(w (scale * level - x)**2)`` of each row; of equals the first."""
    form, cost, point = np.zeros((5, WIDTH), np.float32), np.empty(WIDTH, np.float32), np.empty(WIDTH, np.int32)
    for top in range(0, len(codes), WIDTH):
        width = min(WIDTH, len(codes) - top)
        for j in range(width):
            scale = these.scale[top + j]
            for i in range(2):
                weight = these.w[top + j, i] * scale
                form[2 * i, j], form[2 * i + 1, j] = weight * scale, -TWO * weight * these.x[top + j, i]
        _choose(words.book, form, width, cost, point)
        for j in range(width):
            codes[top + j, 0], codes[top + j, 1] = words.codes[0, point[j]], words.codes[1, point[j]]


@compiled
def _choose(book: F32, form: F32, width: int, cost: F32, point: NDArray[np.int32]) -> None:
    """Writes the first ``point`` of least ``cost`` for each form."""
    for k in range(book.shape[1]):
        g, h = book[0, k], book[1, k]
        gg, hh, gh = g * g, h * h, g * h
        for j in range(width):
            own = (form[0, j] * gg + form[1, j] * g) + (form[2, j] * hh + form[3, j] * h) + form[4, j] * gh
            better = k == 0 or own < cost[j]
            cost[j] = own if better else cost[j]
            point[j] = k if better else point[j]


@compiled
def round_pairs(these: Channels, words: Words, levels: F32, tolls: F32) -> None:
    """See ``rounding.words``: all channels, pair by pair; a last one may stand alone.

    ``tolls`` F32[n]: what a unit of a channel's squared step costs. Held codes are in place; a pair of them stays unless
    another costs less.
    """
    wanted, form = np.zeros((2, WIDTH), np.float32), np.zeros((5, WIDTH), np.float32)
    cost, point = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.int32)
    n, outs = these.wanted.shape
    for left in range(0, outs, WIDTH):
        width = min(WIDTH, outs - left)
        for first in range(0, n, 2):
            for i in range(min(2, n - first)):
                for j in range(width):
                    wanted[i, j] = these.wanted[first + i, left + j]
                for k in range(first):
                    share = these.mix[first + i, k]
                    for j in range(width):
                        wanted[i, j] -= share * these.steps[k, left + j]
            if len(these.held):
                _moving(these, (first, left, width), wanted, tolls, form)
            else:
                _absorbing(these, (first, left, width), wanted, tolls, form)
            _choose(words.book, form, width, cost, point)
            for j in range(width):
                if not len(these.held) or cost[j] < _kept(these, first, left + j, form[:, j]):
                    _write(these, (first, left + j), wanted[:, j], words.codes[:, point[j]], levels)
                else:
                    for row in range(first, min(first + 2, n)):
                        these.values[row, left + j], these.steps[row, left + j] = these.held[row, left + j], ZERO


Place = tuple[int, int, int]  # the first channel, the first output, and how many of these


@compiled
def _absorbing(these: Channels, place: Place, wanted: F32, tolls: F32, form: F32) -> None:
    """GPTQ's: the second channel bears the first one's step, so ``t0 e**2 + t1 (x1 - m e - h)**2``, e = x0 - g."""
    first, left, width = place
    paired = first + 1 < len(tolls)
    toll = tolls[first + 1] if paired else ZERO
    share = these.mix[first + 1, first] if paired else ZERO
    for j in range(width):
        scale, own = these.scale[first, left + j], these.scale[min(first + 1, len(tolls) - 1), left + j]
        rest = wanted[1, j] - share * wanted[0, j]  # what the second would want if the first became 0
        form[0, j] = (tolls[first] + toll * share * share) * scale * scale
        form[1, j] = TWO * scale * (toll * share * rest - tolls[first] * wanted[0, j])
        form[2, j] = toll * own * own
        form[3, j] = -TWO * toll * own * rest
        form[4, j] = -TWO * toll * share * scale * own


@compiled
def _moving(these: Channels, place: Place, wanted: F32, tolls: F32, form: F32) -> None:
    """The polish's: the Hessian's corner around what is held, ``sum(H_ii (q_i - x_i)**2)`` and twice H_01 times both moves."""
    first, left, width = place
    paired = first + 1 < len(tolls)
    toll = tolls[first + 1] if paired else ZERO
    both = -these.mix[first + 1, first] * toll if paired else ZERO
    second = first + 1 if paired else first
    for j in range(width):
        scale, own = these.scale[first, left + j], these.scale[second, left + j]
        form[0, j] = tolls[first] * scale * scale
        form[1, j] = -TWO * scale * (tolls[first] * wanted[0, j] + both * these.held[second, left + j])
        form[2, j] = toll * own * own
        form[3, j] = -TWO * own * (toll * wanted[1, j] + both * these.held[first, left + j])
        form[4, j] = TWO * both * scale * own


@compiled
def _kept(these: Channels, first: int, j: int, form: F32) -> np.float32:
    """What the held pair costs by that form."""
    scale = these.scale[first, j]
    g, h = these.held[first, j] / scale if scale != 0 else ZERO, ZERO
    if first + 1 < len(these.wanted):
        own = these.scale[first + 1, j]
        h = these.held[first + 1, j] / own if own != 0 else ZERO
    cost: np.float32 = (form[0] * g * g + form[1] * g) + (form[2] * h * h + form[3] * h) + form[4] * (g * h)
    return cost


@compiled
def _write(these: Channels, place: tuple[int, int], wanted: F32, codes: U8, levels: F32) -> None:
    """The chosen codes, their values and the steps that later channels see."""
    first, j = place
    carried = ZERO
    for i in range(min(2, len(these.wanted) - first)):
        row = first + i
        value = levels[codes[i]] * these.scale[row, j]
        step = these.held[row, j] - value if len(these.held) else wanted[i] - carried - value
        these.codes[row, j], these.values[row, j], these.steps[row, j] = codes[i], value, step
        if i == 0 and row + 1 < len(these.wanted):
            carried = these.mix[row + 1, row] * step
