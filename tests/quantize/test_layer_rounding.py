"""A decoder layer's linears rounded together, stacked or side by side, become what each becomes alone."""

from __future__ import annotations

import os

import numpy as np
import pytest

from quantize import workers
from quantize.blocks import dequantize, unstack
from quantize.errors import PlanError
from quantize.grids import make_grid
from quantize.rounding import ROUNDERS
from quantize.steps import layer_rounding
from quantize.steps.layer_rounding import Linear, round_all
from quantize.types import Axis, InputStats, TensorPlan
from tests.cases import AXES, GRIDS, grid_id, stats_of, weight_of

INPUTS, OUTS = 96, (64, 32, 80)  # the last is no whole number of groups of 32


def linears(grid, rounder: str = "gptq", weighed: bool = True) -> list[Linear]:
    """Three that share an input, and one of its own."""
    shared, own = stats_of(INPUTS), stats_of(64)
    candidates = dict.fromkeys(AXES, grid)
    made = [
        Linear(TensorPlan(f"w{outs}", (outs, INPUTS), candidates, rounder), weight_of((outs, INPUTS), seed=outs), shared)
        for outs in OUTS
    ]
    made.append(Linear(TensorPlan("o", (32, 64), candidates, rounder), weight_of((32, 64)), own))
    if not weighed:
        return made
    rng = np.random.default_rng(1)
    rows = [rng.uniform(0.5, 2, len(item.weight)).astype(np.float32) for item in made]
    return [
        Linear(item.plan, item.weight, InputStats(item.stats.hessian, item.stats.n_tokens, row))
        for item, row in zip(made, rows, strict=True)
    ]


@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("grid", [make_grid("int", 4, 32), make_grid("q4_1", 4, 32)], ids=grid_id)
def test_stacked_is_each_alone(grid, weighed):
    """But for float32 sums in another order, at which a code may fall the other way."""
    items = linears(grid, weighed=weighed)
    assert [len(group) for group in layer_rounding._alike(items[:3], Axis.PER_OC)] == [3]
    assert [len(group) for group in layer_rounding._alike(items[:3], Axis.PER_IC)] == [2, 1]
    for item, found in zip(items, round_all(items), strict=True):
        assert list(found) == list(AXES)
        for axis, (tensor, record) in found.items():
            alone, expected = item.rounded(axis)
            assert (tensor.name, tensor.axis, tensor.codes.shape) == (item.plan.name, axis, alone.codes.shape)
            assert (tensor.codes != alone.codes).mean() < 0.01
            assert record.name == item.plan.name and record.rounder == expected.rounder
            assert record.loss[str(axis)] == pytest.approx(expected.loss[str(axis)], rel=1e-2)


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
    several = round_all(items)
    monkeypatch.setattr(workers, "threads", lambda: 1)
    for one, other in zip(several, round_all(items), strict=True):
        for axis, (tensor, record) in one.items():
            assert np.array_equal(tensor.codes, other[axis][0].codes) and record == other[axis][1]


def test_what_a_thread_refuses_is_refused():
    item = linears(make_grid("int", 4, 32))[0]
    with pytest.raises(PlanError, match="w64: its weights overflow the float16 scale of grid int"):
        round_all([Linear(item.plan, item.weight * np.float32(1e8), item.stats)])


def test_threads_start_none_of_their_own():
    cores = os.cpu_count() or 1
    assert workers.in_threads(lambda index: (index, workers.threads()), range(4)) == [(index, 1) for index in range(4)]
    assert workers.threads() == cores
