"""A decoder layer's linears rounded together, stacked or in child processes, become what each becomes alone."""

from __future__ import annotations

import os

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from quantize import layer_rounding, workers
from quantize.blocks import dequantize, unstack
from quantize.errors import PlanError
from quantize.grids import make_grid
from quantize.layer_rounding import Linear, round_all
from quantize.rounding import ROUNDERS
from quantize.types import Axis, LayerPlan, LayerStats
from tests.cases import AXES, GRIDS, grid_id, stats_of, weight_of

INPUTS, OUTS = 96, (64, 32, 80)  # the last is no whole number of groups of 32


def linears(grid, rounder: str = "gptq", weighed: bool = True) -> list[Linear]:
    """Three that share an input, and one of its own."""
    shared, own = stats_of(INPUTS), stats_of(64)
    candidates = dict.fromkeys(AXES, grid)
    made = [
        Linear(LayerPlan(f"w{outs}", (outs, INPUTS), candidates, rounder), weight_of((outs, INPUTS), seed=outs), shared)
        for outs in OUTS
    ]
    made.append(Linear(LayerPlan("o", (32, 64), candidates, rounder), weight_of((32, 64)), own))
    if not weighed:
        return made
    rng = np.random.default_rng(1)
    rows = [rng.uniform(0.5, 2, len(item.weight)).astype(np.float32) for item in made]
    return [
        Linear(item.plan, item.weight, LayerStats(item.stats.hessian, item.stats.n_tokens, row))
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


def test_children_give_what_threads_give(monkeypatch):
    items = linears(make_grid("int", 3, 32))
    assert not layer_rounding._worth_children(items)
    with threadpool_limits(limits=1, user_api="blas"):  # as the pipeline has it
        in_threads = round_all(items)
    monkeypatch.setattr(layer_rounding, "FEW_WEIGHTS", 0)
    assert layer_rounding._worth_children(items)
    for here, there in zip(in_threads, round_all(items), strict=True):
        for axis, (tensor, record) in here.items():
            assert np.array_equal(tensor.codes, there[axis][0].codes) and record == there[axis][1]
    monkeypatch.setattr(layer_rounding, "MANY_INPUTS", 64)
    assert not layer_rounding._worth_children(items)


def test_what_a_child_refuses_is_refused(monkeypatch):
    monkeypatch.setattr(layer_rounding, "FEW_WEIGHTS", 0)
    item = linears(make_grid("int", 4, 32))[0]
    with pytest.raises(PlanError, match="w64: its weights overflow the float16 scale of grid int"):
        round_all([Linear(item.plan, item.weight * np.float32(1e8), item.stats)])


def test_children_are_processes_of_their_own_with_one_thread():
    found = workers.in_children(_about, range(2 * (os.cpu_count() or 1)))
    assert os.getpid() not in {process for process, _, _ in found}
    assert {threads for _, threads, _ in found} == {1} and [index for *_, index in found] == list(range(len(found)))
    assert workers.threads() == (os.cpu_count() or 1)


def _about(index: int) -> tuple[int, int, int]:
    return os.getpid(), workers.threads(), index


@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_a_grid_that_was_used_goes_to_a_child(grid, monkeypatch):
    """Whatever it has cached by then."""
    monkeypatch.setattr(layer_rounding, "FEW_WEIGHTS", 0)
    shape, stats = (8, max(64, grid.block_size)), stats_of(max(64, grid.block_size))
    item = Linear(LayerPlan("w", shape, {Axis.PER_OC: grid}, "gptq"), weight_of(shape), stats)
    expected, _ = item.rounded(Axis.PER_OC)
    tensor, record = round_all([item])[0][Axis.PER_OC]
    assert np.array_equal(tensor.codes, expected.codes) and record.grid == grid
