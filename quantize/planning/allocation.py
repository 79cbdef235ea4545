"""One option for each tensor: the least total loss within a number of bytes, exactly (a multiple-choice knapsack);
and within a number of seconds too, by a price of them.

A price per byte bounds every choice within the budget: ``sum(loss) >= sum(min(loss + price * bytes)) - price * budget``. At
the price of the last step that a greedy answer takes, this bound lies close below that answer. So one tensor after another
joins, and of all (bytes, loss) so far only those stay that may still beat the answer and that no other beats in both: few.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

DOUBLINGS, PRICES = 40, 1000  # of a price of a second until it is enough, and halvings; of it, how finely it is found
ROUNDING = 1e-12  # of what is added up: sums in another order must not cut off the best choice


class Cost(NamedTuple):
    """What an option takes in the file and adds to the loss (nats per token)."""

    bytes: int
    loss: float


Costs = Sequence[Cost]


def smallest(options: Sequence[Costs]) -> int:
    """The fewest bytes that one option for each tensor can take."""
    return sum(min(costs).bytes for costs in options)


def allocate(options: Sequence[Costs], budget: int) -> list[int]:
    """The index of one option for each tensor: no other choice within ``budget`` bytes has less loss in total.

    Deterministic. ``budget`` must be at least ``smallest(options)``.
    """
    assert smallest(options) <= budget, (smallest(options), budget)
    useful = [_undominated(costs) for costs in options]
    answer, price = _greedy(options, useful, budget)
    if price == 0:
        return answer
    priced = [{i: costs[i].loss + price * costs[i].bytes for i in kept} for costs, kept in zip(options, useful, strict=True)]
    limit = sum(values[i] for values, i in zip(priced, answer, strict=True))
    limit += price * (budget - sum(costs[i].bytes for costs, i in zip(options, answer, strict=True)))
    limit *= 1 + ROUNDING
    room = limit - sum(min(values.values()) for values in priced)
    near = [[i for i, value in values.items() if value - min(values.values()) <= room] for values in priced]
    return _search(options, near, (budget, price, limit))


def allocate_in_time(options: Sequence[Costs], seconds: Sequence[Sequence[float]], budget: int, slowdown: float) -> list[int]:
    """``allocate`` that takes no more than ``slowdown`` times the ``seconds`` of the quickest choice within ``budget`` bytes.

    By the least price of a second that comes to that, within a part in a thousand: no other choice as quick loses less, but for
    those that lie between two prices.
    """

    def at(price: float, worth: float = 1.0) -> tuple[list[int], float]:
        priced = [
            [Cost(cost.bytes, worth * cost.loss + price * own) for cost, own in zip(costs, times, strict=True)]
            for costs, times in zip(options, seconds, strict=True)
        ]
        choice = allocate(priced, budget)
        return choice, sum(times[i] for times, i in zip(seconds, choice, strict=True))

    quickest, least = at(1.0, worth=0.0)
    bound = slowdown * least * (1 + ROUNDING)
    choice, taken = at(0.0)
    if taken <= bound:
        return choice
    low, high, best = 0.0, sum(max(cost.loss for cost in costs) for costs in options) / taken, quickest
    for _ in range(DOUBLINGS):
        choice, taken = at(high)
        if taken <= bound:
            best = choice
            break
        low, high = high, 2 * high
    for _ in range(DOUBLINGS):  # of options that lose alike the quicker one is taken at any price, however small
        if high - low <= high / PRICES:
            break
        price = (low + high) / 2
        choice, taken = at(price)
        low, high, best = (low, price, choice) if taken <= bound else (price, high, best)
    return best


def _undominated(costs: Costs) -> list[int]:
    """Indices by rising bytes and falling loss, without those that another beats or equals in both."""
    kept: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: costs[i]):
        if not kept or costs[i].loss < costs[kept[-1]].loss:
            kept.append(i)
    return kept


def _hull(costs: Costs, useful: list[int]) -> list[int]:
    """Of those, the corners of the lower convex hull: each step gains less per byte than the one before."""
    corners: list[int] = []
    for i in useful:
        while len(corners) > 1 and _gain(costs, corners[-1], i) >= _gain(costs, corners[-2], corners[-1]):
            corners.pop()
        corners.append(i)
    return corners


def _gain(costs: Costs, small: int, large: int) -> float:
    """Loss saved per byte added."""
    return (costs[small].loss - costs[large].loss) / (costs[large].bytes - costs[small].bytes)


def _greedy(options: Sequence[Costs], useful: list[list[int]], budget: int) -> tuple[list[int], float]:
    """A choice within the budget, steps of most gain first; and the gain of the first step that did not fit, 0 if all did."""
    hulls = [_hull(costs, kept) for costs, kept in zip(options, useful, strict=True)]
    steps = [
        (_gain(costs, *step), tensor, step)
        for tensor, (costs, hull) in enumerate(zip(options, hulls, strict=True))
        for step in pairwise(hull)
    ]
    choice, price = [hull[0] for hull in hulls], 0.0
    left = budget - sum(costs[i].bytes for costs, i in zip(options, choice, strict=True))
    for gain, tensor, (small, large) in sorted(steps, key=lambda step: -step[0]):
        more = options[tensor][large].bytes - options[tensor][small].bytes
        if choice[tensor] == small and more <= left:
            choice[tensor], left = large, left - more
        else:
            price = price or gain
    return choice, price


def _search(options: Sequence[Costs], near: list[list[int]], bounds: tuple[int, float, float]) -> list[int]:
    """The best choice among ``near``; ``bounds``: budget, price, and what loss + price * bytes must not exceed with the rest."""
    budget, price, limit = bounds
    rest_bytes = sum(options[t][i].bytes for t, (i, *_) in enumerate(near))
    rest_priced = sum(min(options[t][i].loss + price * options[t][i].bytes for i in kept) for t, kept in enumerate(near))
    size, loss = np.zeros(1, np.int64), np.zeros(1)
    trail = []
    for costs, kept in zip(options, near, strict=True):
        own_size = np.array([costs[i].bytes for i in kept], np.int64)
        own_loss = np.array([costs[i].loss for i in kept])
        rest_bytes -= int(own_size[0])
        rest_priced -= float((own_loss + price * own_size).min())
        size, loss = (size[:, None] + own_size).ravel(), (loss[:, None] + own_loss).ravel()
        possible = np.flatnonzero((size + rest_bytes <= budget) & (loss + price * size + rest_priced <= limit))
        order = possible[np.lexsort((loss[possible], size[possible]))]
        least = np.minimum.accumulate(loss[order])
        order = order[np.concatenate([[True], loss[order][1:] < least[:-1]])]
        size, loss = size[order], loss[order]
        trail.append(order)
    state, choice = len(loss) - 1, list[int]()  # by rising bytes and falling loss: the last has the least
    for kept, order in zip(reversed(near), reversed(trail), strict=True):
        state, option = divmod(int(order[state]), len(kept))
        choice.append(kept[option])
    return choice[::-1]
