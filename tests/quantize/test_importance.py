"""Weights of no importance, or next to none: rounded as if nothing were known of them, whatever else is in their block."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.blocks import dequantize, to_blocks, to_rows
from quantize.grids import make_grid
from quantize.grids.importance import UNSEEN, weighed
from quantize.methods import ROUNDERS
from quantize.types import Axis, InputStats
from tests.cases import AXES, GRIDS, grid_id, grid_named, stats_of, weight_of

COLS = 512
LEVELS = {"zero": 0.0, "tiny": 1e-30, "denormal": 1e-42}
WHOLE_GROUPS = {
    "one group": lambda g: slice(g, 2 * g),
    "two groups": lambda g: slice(0, 2 * g),
    "all but one group": lambda g: slice(g, COLS),
    "everything": lambda g: slice(0, COLS),
}
PARTS = {"half a group": lambda g: slice(0, g // 2), "all but one weight": lambda g: slice(g, 2 * g - 1)}
SUPER_BLOCKS = [grid for grid in GRIDS if grid.block_size > grid.group_size]


def stats_along(axis: Axis, importance: np.ndarray) -> InputStats:
    """Statistics in which F32[COLS] is what weights along a group of that axis matter."""
    even = np.ones(COLS, np.float32)
    return InputStats(importance, 512) if axis is Axis.PER_OC else InputStats(even, 512, importance)


def weight_along(axis: Axis) -> np.ndarray:
    """F32 of 16 rows that are COLS long on that axis."""
    weight = weight_of((16, COLS))
    return weight if axis is Axis.PER_OC else np.ascontiguousarray(weight.T)


def importance_of(run: slice, level: float) -> np.ndarray:
    importance = np.random.default_rng(2).uniform(1, 1e3, COLS).astype(np.float32)
    importance[run] = level
    return importance


def errors(weight, grid, axis, stats, run):
    """Relative errors of round-to-nearest in the run and beside it, where importance weighs them."""
    rows, found = to_rows(weight, axis), to_rows(dequantize(ROUNDERS["rtn"]("w", weight, grid, axis, stats)), axis)
    assert np.isfinite(found).all()
    error = found - rows
    along = stats.importance if axis is Axis.PER_OC else stats.row_weight
    beside = np.delete(np.square(error) * along, run, axis=1).sum()
    size = max(np.linalg.norm(rows[:, run]), np.finfo(np.float32).tiny)
    return float(np.linalg.norm(error[:, run]) / size), float(beside)


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_groups_that_nothing_woke_are_rounded_as_well_as_any(grid, axis, level):
    weight, even = weight_along(axis), stats_along(axis, np.ones(COLS, np.float32))
    for name, run_of in WHOLE_GROUPS.items():
        run = run_of(grid.group_size)
        left, _ = errors(weight, grid, axis, stats_along(axis, importance_of(run, level)), run)
        plain, _ = errors(weight, grid, axis, even, run)
        assert left <= 1.25 * plain, f"{name}: {left:.3f}, {plain:.3f} with even importance"


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_a_part_of_a_group_that_nothing_woke_is_rounded_within_its_range(grid, axis, level):
    """The other weights decide, and rounding errors do not."""
    weight, even = weight_along(axis), stats_along(axis, np.ones(COLS, np.float32))
    for name, run_of in PARTS.items():
        run = run_of(grid.group_size)
        left, _ = errors(weight, grid, axis, stats_along(axis, importance_of(run, level)), run)
        plain, _ = errors(weight, grid, axis, even, run)
        assert left <= min(max(5 * plain, 0.3), 0.7), f"{name}: {left:.3f}, {plain:.3f} with even importance"


@pytest.mark.parametrize("grid", SUPER_BLOCKS, ids=grid_id)
def test_a_huge_group_that_nothing_woke_leaves_the_others_their_steps(grid):
    weight, run = weight_of((16, COLS)), slice(grid.group_size, 2 * grid.group_size)
    huge = weight.copy()
    huge[:, run] *= 1000
    stats = stats_along(Axis.PER_OC, importance_of(run, 0.0))
    alone, beside = (errors(value, grid, Axis.PER_OC, stats, run)[1] for value in (weight, huge))
    assert beside <= 4 * alone


@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_weights_that_matter_lose_nothing_to_those_that_do_not(grid):
    """Beside the group, the error is that of a block in which the group is empty."""
    weight, run = weight_of((16, COLS)), slice(grid.group_size, 2 * grid.group_size)
    cleared = weight.copy()
    cleared[:, run] = 0
    stats = stats_along(Axis.PER_OC, importance_of(run, 0.0))
    if grid.name != "q8_0":  # knows no importance
        with_them, without = (errors(value, grid, Axis.PER_OC, stats, run)[1] for value in (weight, cleared))
        assert with_them <= 1.05 * without


def test_what_every_weight_matters_is_passed_on():
    """Above float32's resolution nothing is made up: w is the importance over its mean, bit for bit."""
    x = np.random.default_rng(0).standard_normal((32, 8, 5)).astype(np.float32)
    w = np.random.default_rng(1).uniform(0.1, 1, x.shape).astype(np.float32)
    w[3] *= np.float32(4 * UNSEEN)
    found_x, found_w = weighed(x, w)
    assert found_x is x
    assert np.array_equal(found_w, (w / w.mean((0, 1), dtype=np.float64)).astype(np.float32))


@pytest.mark.parametrize("grid", SUPER_BLOCKS, ids=grid_id)
def test_the_filling_of_a_ragged_block_counts_for_nothing(grid):
    weight, importance = weight_of((8, 40)), np.random.default_rng(4).uniform(0.1, 1, 40).astype(np.float32)
    filled = np.concatenate([weight, np.zeros((8, 216), np.float32)], 1)
    known = np.concatenate([importance, np.zeros(216, np.float32)])
    ragged = grid.fit(to_blocks(weight, 256), to_blocks(importance, 256))
    whole = grid.fit(to_blocks(filled, 256), to_blocks(known, 256))
    x = np.ascontiguousarray(filled.reshape(8, -1, grid.group_size).transpose(2, 1, 0))
    w = np.broadcast_to(known.reshape(-1, grid.group_size).T[..., None], x.shape)
    assert all(np.array_equal(ragged[key], whole[key]) for key in ragged)
    assert not weighed(x, w)[1][40 % grid.group_size :, 40 // grid.group_size].any()


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", ["int", "q4_0", "q4_1", "q4_k", "q6_k", "iq4_xs", "mxfp4"])
def test_gptq_leaves_channels_that_are_never_active_where_they_are(name, axis, level):
    """They could take any value to mend what the others lose: it costs nothing on the calibration text."""
    grid = grid_named(name)
    active = np.ones(256, np.float32)
    active[64:128] = np.sqrt(level)
    hessian = stats_of(256).hessian * np.outer(active, active)
    weight = weight_of((32, 256))
    values = dequantize(ROUNDERS["gptq"]("w", weight, grid, axis, InputStats(hessian, 512)))
    plain = dequantize(ROUNDERS["rtn"]("w", weight, grid, axis, None))
    left, expected = (np.linalg.norm((value - weight)[:, 64:128]) for value in (values, plain))
    assert left <= 1.5 * expected or (grid.name == "q6_k" and left <= 3 * expected)


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", ["int", "q4_0", "q4_k", "q6_k", "mxfp4"])
def test_rows_of_no_weight_at_all_count_alike(name, axis, level):
    grid, weight, stats = grid_named(name), weight_of((64, 64)), stats_of(64)
    plain = dequantize(ROUNDERS["gptq"]("w", weight, grid, axis, stats))
    rows = InputStats(stats.hessian, 512, np.full(64, level, np.float32))
    values = dequantize(ROUNDERS["gptq"]("w", weight, grid, axis, rows))
    assert np.linalg.norm(values - weight) <= 1.1 * np.linalg.norm(plain - weight)


def test_a_model_that_is_silent_throughout_is_rounded():
    weight, grid = weight_of((64, 64)), make_grid("q4_0", 4, 32)
    silent = InputStats(np.zeros((64, 64), np.float32), 512, np.zeros(64, np.float32))
    values = dequantize(ROUNDERS["gptq"]("w", weight, grid, Axis.PER_OC, silent))
    assert np.linalg.norm(values - weight) < 0.2 * np.linalg.norm(weight)
