"""A decoder block's linears rounded together, stacked or side by side, become what each becomes alone."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from quantize import workers
from quantize.blocks import dequantize, unstack
from quantize.errors import PlanError
from quantize.grids import make_grid
from quantize.methods import ROUNDERS
from quantize.steps import round as round_step
from quantize.steps.round import Linear, round_all
from quantize.types import Axis, InputStats
from tests.cases import AXES, GRIDS, grid_id, stats_of, weight_of

INPUTS, OUTS = 96, (64, 32, 80)  # the last is no whole number of groups of 32


SITES = [[f"w{outs}" for outs in OUTS]]


def linears(grid, rounder: str = "gptq", weighed: bool = True) -> list[Linear]:
    """Three that share an input, and one of its own."""
    shared, own = stats_of(INPUTS), stats_of(64)
    made = [(f"w{outs}", weight_of((outs, INPUTS), seed=outs), shared) for outs in OUTS]
    made.append(("o", weight_of((32, 64)), own))
    if weighed:
        rng = np.random.default_rng(1)
        rows = [rng.uniform(0.5, 2, len(weight)).astype(np.float32) for _, weight, _ in made]
        made = [
            (name, weight, InputStats(stats.hessian, stats.n_tokens, row))
            for (name, weight, stats), row in zip(made, rows, strict=True)
        ]
    return [Linear(*one, dict.fromkeys(AXES, grid), ROUNDERS[rounder]) for one in made]


@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("grid", [make_grid("int", 4, 32), make_grid("q4_1", 4, 32)], ids=grid_id)
def test_stacked_is_each_alone(grid, weighed):
    """But for float32 sums in another order, at which a code may fall the other way."""
    items = linears(grid, weighed=weighed)
    assert [len(group) for group in round_step._alike(items[:3], Axis.PER_OC)] == [3]
    assert [len(group) for group in round_step._alike(items[:3], Axis.PER_IC)] == [2, 1]
    for item, found in zip(items, round_all(items, SITES), strict=True):
        assert list(found) == list(AXES)
        for axis, (tensor, rounder, loss) in found.items():
            alone = item.rounded(axis)
            assert (tensor.name, tensor.axis, tensor.codes.shape) == (item.name, axis, alone.tensor.codes.shape)
            assert (tensor.codes != alone.tensor.codes).mean() < 0.01
            assert rounder == alone.rounder
            assert loss == pytest.approx(alone.loss, rel=1e-2)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_what_is_unstacked_decodes_to_the_rows(grid, axis):
    outs = [grid.block_size, 2 * grid.block_size] if axis is Axis.PER_IC else [3, 5]
    weight = weight_of((sum(outs), 160 if grid.block_size <= 160 else grid.block_size))
    tensor = ROUNDERS["rtn"]("w", weight, grid, axis, None)
    values = np.split(dequantize(tensor), [outs[0]])
    for part, rows in zip(unstack(tensor, outs), values, strict=True):
        np.testing.assert_array_equal(dequantize(part), rows)


def test_one_thread_gives_what_many_give(monkeypatch):
    items = linears(make_grid("int", 3, 32))
    several = round_all(items, SITES)
    monkeypatch.setattr(workers, "threads", lambda: 1)
    with threadpool_limits(limits=1, user_api="blas"):
        alone = round_all(items, SITES)
    for one, other in zip(several, alone, strict=True):
        for axis, (tensor, *told) in one.items():
            assert np.array_equal(tensor.codes, other[axis].tensor.codes) and told == list(other[axis][1:])


def test_what_a_thread_refuses_is_refused():
    item = linears(make_grid("int", 4, 32))[0]
    with pytest.raises(PlanError, match="w64: its weights overflow the float16 scale of grid int"):
        round_all([replace(item, weight=item.weight * np.float32(1e8))])


def test_threads_start_none_of_their_own():
    cores = os.cpu_count() or 1
    assert workers.in_threads(lambda index: (index, workers.threads()), range(4)) == [(index, 1) for index in range(4)]
    assert workers.threads() == cores
