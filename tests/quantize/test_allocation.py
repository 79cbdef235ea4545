"""The allocation is the best there is: compared with trying everything, and with a dynamic program over bytes at real sizes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from quantize.planning.allocation import Cost, _hull, allocate, allocate_in_time, smallest


def random_options(rng, tensors, most, top):
    """``top``: largest number of bytes; losses fall with bytes only roughly, and some are equal."""
    out = []
    for _ in range(tensors):
        count = int(rng.integers(1, most + 1))
        sizes = rng.integers(1, top, count)
        losses = np.round(np.exp(-4 * sizes / top + rng.normal(0, 0.3, count)) * rng.lognormal(), 2)
        out.append([Cost(int(size), float(loss)) for size, loss in zip(sizes, losses, strict=True)])
    return out


def total(options, choice):
    picked = [costs[i] for costs, i in zip(options, choice, strict=True)]
    return sum(cost.bytes for cost in picked), sum(cost.loss for cost in picked)


@pytest.mark.parametrize("seed", range(60))
def test_no_choice_is_better(seed):
    rng = np.random.default_rng(seed)
    options = random_options(rng, int(rng.integers(1, 6)), 5, int(rng.choice([6, 40, 1000])))
    every = [total(options, choice) for choice in product(*(range(len(costs)) for costs in options))]
    least, most = smallest(options), max(size for size, _ in every)
    assert least == min(size for size, _ in every)
    for budget in rng.integers(least, most + 2, 8):
        size, loss = total(options, allocate(options, int(budget)))
        assert size <= budget
        assert loss == pytest.approx(min(loss for size, loss in every if size <= budget), abs=1e-9)


def least_loss(options, budget):
    """By number of bytes, one tensor after another: F64[budget + 1]."""
    best = np.zeros(budget + 1)
    for costs in options:
        tried = [
            np.concatenate([np.full(min(size, budget + 1), np.inf), best[: max(0, budget + 1 - size)] + loss])
            for size, loss in costs
        ]
        best = np.min(tried, 0)
    return best[budget]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.98])
def test_as_many_tensors_as_a_model_has(share):
    options = random_options(np.random.default_rng(7), 211, 20, 300)
    most = sum(max(costs).bytes for costs in options)
    budget = int(smallest(options) + share * (most - smallest(options)))
    choice = allocate(options, budget)
    size, loss = total(options, choice)
    assert size <= budget
    assert loss == pytest.approx(least_loss(options, budget), rel=1e-9)
    assert choice == allocate(options, budget)


@pytest.mark.parametrize("slowdown", [1.0, 1.2, 1.6, 9.0])
@pytest.mark.parametrize("seed", range(12))
def test_no_choice_that_is_as_quick_loses_less(seed, slowdown):
    rng = np.random.default_rng(seed)
    options = random_options(rng, int(rng.integers(2, 6)), 5, 40)
    seconds = [[float(second) for second in rng.uniform(1, 4, len(costs))] for costs in options]
    every = list(product(*(range(len(costs)) for costs in options)))

    def taken(choice):
        return sum(times[i] for times, i in zip(seconds, choice, strict=True))

    for budget in rng.integers(smallest(options), smallest(options) + 60, 4):
        within = [choice for choice in every if total(options, choice)[0] <= budget]
        quickest = min(map(taken, within))
        found = allocate_in_time(options, seconds, int(budget), slowdown)
        size, loss = total(options, found)
        assert size <= budget and taken(found) <= slowdown * quickest * (1 + 1e-9)
        assert not [one for one in within if total(options, one)[1] < loss - 1e-9 and taken(one) < taken(found) - 1e-9]
        quick = min(within, key=lambda choice: (taken(choice), total(options, choice)[1]))
        assert loss <= total(options, quick)[1] + 1e-9
        if taken(allocate(options, int(budget))) <= slowdown * quickest:
            assert found == allocate(options, int(budget))


def test_of_options_that_lose_alike_the_quicker_one_is_taken():
    """At any price of a second, however small: no search for the least one ends by itself."""
    options = [[Cost(4, 0.0), Cost(4, 1.0), Cost(5, 0.0)], [Cost(3, 0.5), Cost(3, 1.5)]]
    assert allocate_in_time(options, [[9.0, 1.0, 2.0], [1.0, 1.0]], 9, 1.5) == [2, 0]
    assert allocate_in_time([[Cost(1, 0.0), Cost(2, 0.0)]], [[2.0, 1.0]], 2, 1.0) == [1]


def test_room_for_everything_takes_the_least_loss_of_each_and_no_byte_more():
    options = [[Cost(9, 0.0), Cost(4, 1.0), Cost(6, 0.0)], [Cost(5, 2.0)]]
    assert allocate(options, 100) == [2, 0]
    assert allocate(options, 11) == [2, 0]
    assert allocate(options, 10) == [1, 0]


def test_a_step_that_gains_less_than_the_next_is_no_corner():
    """What the first guess is made of; the search would mend it, at length."""
    costs = [Cost(1, 10.0), Cost(2, 9.5), Cost(3, 0.0), Cost(9, -1.0)]
    assert _hull(costs, [0, 1, 2, 3]) == [0, 2, 3]
    assert _hull(costs, [0, 1, 2]) == [0, 2]
