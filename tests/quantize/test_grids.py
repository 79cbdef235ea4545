"""Every grid: rounding error, fixed points, zero groups, searched params; and the duality of the two axes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantize.blocks import dequantize, spread, to_blocks, to_rows
from quantize.errors import ConfigError
from quantize.grids import make_grid
from quantize.rounding.rtn import rtn
from quantize.types import Axis
from tests.cases import AXES, GRIDS, MIN_MAX_GRIDS, SEARCHED_GRIDS, SHAPES, grid_id, weight_of

EPS16 = 2.0**-10  # a float16 param is off by at most this share, and codes multiply it


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grid", MIN_MAX_GRIDS, ids=grid_id)
def test_rtn_is_within_half_a_step(grid, shape, axis):
    weight = weight_of(shape)
    tensor = rtn("w", weight, grid, axis)
    assert tensor.shape == shape
    scale, _ = grid.scale_zero(tensor.params)
    steps = np.abs(spread(scale, grid.group_size, tensor.codes.shape[1]))
    steps = steps if axis is Axis.PER_OC else steps.T
    error = np.abs(dequantize(tensor) - weight)
    # A symmetric grid has no code for the end opposite to its extreme: there the error may reach a whole step.
    steps_allowed = 1.0 if grid.symmetric else 0.5
    slack = 2**grid.bits * EPS16
    # The int grid rounds its zero point: up to half a step more at the ends of the range.
    if grid.name == "int" and not grid.symmetric:
        steps_allowed = 1.0
    assert (error <= steps * (steps_allowed + slack) + 1e-7).all()


@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_per_ic_is_per_oc_of_the_transpose(grid, shape):
    weight = weight_of(shape)
    per_ic = rtn("w", weight, grid, Axis.PER_IC)
    per_oc = rtn("w", np.ascontiguousarray(weight.T), grid, Axis.PER_OC)
    assert np.array_equal(per_ic.codes, per_oc.codes)
    assert all(np.array_equal(per_ic.params[key], per_oc.params[key]) for key in per_oc.params)
    assert np.array_equal(dequantize(per_ic), dequantize(per_oc).T)


@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_decoded_values_are_fixed_points(grid):
    tensor = rtn("w", weight_of((8, 256)), grid, Axis.PER_OC)
    scale, zero = (spread(value, grid.group_size, 256) for value in grid.scale_zero(tensor.params))
    assert np.array_equal(grid.encode(dequantize(tensor), scale, zero), tensor.codes)


@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_zeros_stay_zero(grid):
    assert not dequantize(rtn("w", np.zeros((2, 256), np.float32), grid, Axis.PER_OC)).any()


@pytest.mark.parametrize("sign", [1, -1])
def test_one_sided_group_is_not_clipped(sign):
    """The paper's code clips an all-positive group (0.5 to 1 comes back as 0.5); the range here contains zero."""
    weight = sign * np.linspace(0.5, 1, 32, dtype=np.float32)[None]
    for bits in (3, 4):
        error = np.abs(dequantize(rtn("w", weight, make_grid("int", bits, 32), Axis.PER_OC)) - weight)
        assert error.max() <= 0.5 / (2**bits - 1) + EPS16


@pytest.mark.parametrize("importance", [None, np.ones(1, np.float32)], ids=["min-max", "searched"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_int_scales_are_the_stored_float16(symmetric, importance):
    grid = make_grid("int", 4, 32, symmetric)
    blocks = to_blocks(weight_of((8, 64)), 32)
    params = grid.fit(blocks, importance)
    scale, zero = grid.scale_zero(params)
    assert params["scale"].dtype == np.float16 and scale.dtype == np.float32
    assert np.array_equal(scale[..., 0], params["scale"].astype(np.float32))
    assert np.array_equal(grid.decode(grid.encode(blocks, scale, zero), scale, zero) / scale % 1, np.zeros_like(blocks))


@pytest.mark.parametrize("importance", [None, np.ones(1, np.float32)], ids=["min-max", "searched"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_scale_below_float16_becomes_its_smallest(symmetric, importance):
    """A group of tiny weights keeps what steps of 2**-24 can say of it, and its sign."""
    grid, least = make_grid("int", 4, 32, symmetric), np.float32(2.0**-24)
    for largest in (2.0**-22, 2.0**-24, 2.0**-60, 2.0**-130):
        block = np.linspace(-largest, largest / 2, 32, dtype=np.float32)[None, None]
        scale, zero = grid.scale_zero(grid.fit(block, importance))
        decoded = grid.decode(grid.encode(block, scale, zero), scale, zero)
        assert np.isfinite(decoded).all() and np.abs(decoded - block).max() <= least / 2
        assert np.abs(scale).max() == least


def test_only_float32_scales_hold_huge_weights():
    block = np.linspace(-1e7, 1e7, 32, dtype=np.float32)[None, None]
    for importance in (None, np.ones(1, np.float32)):
        assert np.isinf(make_grid("int", 4, 32).fit(block, importance)["scale"]).all()
        assert np.isfinite(make_grid("int", 4, 32, scale_dtype="float32").fit(block, importance)["scale"]).all()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.formula.dims == 1], ids=grid_id)
def test_rtn_takes_the_nearest_value(grid, axis):
    weight = weight_of((32, 256))
    tensor = rtn("w", weight, grid, axis)
    rows = to_rows(weight, axis)
    scale, zero = (spread(value, grid.group_size, rows.shape[1]) for value in grid.scale_zero(tensor.params))
    every = [np.abs(grid.decode(np.full_like(tensor.codes, code), scale, zero) - rows) for code in range(2**grid.bits)]
    error = np.abs(grid.decode(tensor.codes, scale, zero) - rows)
    assert (error <= np.min(every, 0) * (1 + 1e-3) + np.abs(scale) * 1e-4).all()


@pytest.mark.parametrize("grid", MIN_MAX_GRIDS, ids=grid_id)
def test_search_never_loses_to_min_max(grid):
    blocks = to_blocks(weight_of((64, 256)), grid.block_size)
    importance = np.random.default_rng(3).random(blocks.shape[1:], dtype=np.float32) ** 4

    def loss(params):
        scale, zero = (np.repeat(value, grid.group_size, -1) for value in grid.scale_zero(params))
        return ((grid.decode(grid.encode(blocks, scale, zero), scale, zero) - blocks) ** 2 * importance).sum(-1)

    searched, plain = loss(grid.fit(blocks, importance)), loss(grid.fit(blocks))
    assert (searched <= plain * (1 + 1e-3)).all()  # a float16 param may be rounded the wrong way
    if grid.name != "q8_0":
        assert searched.sum() < plain.sum()


@pytest.mark.parametrize("grid", SEARCHED_GRIDS, ids=grid_id)
def test_importance_decides(grid):
    """Where all importance lies on a few weights, these come out far better than without."""
    blocks = to_blocks(weight_of((64, 256)), grid.block_size)
    importance = np.zeros(grid.block_size, np.float32)
    importance[:: grid.group_size // 2] = 1

    def loss(params):
        scale, zero = (np.repeat(value, grid.group_size, -1) for value in grid.scale_zero(params))
        codes = grid.encode(blocks, scale, zero, importance)
        return float(((grid.decode(codes, scale, zero) - blocks) ** 2 * importance).sum())

    share = 0.95 if grid.name == "mxfp4" else 0.6  # powers of two leave little to decide
    assert loss(grid.fit(blocks, importance)) < share * loss(grid.fit(blocks))


@pytest.mark.parametrize("grid", SEARCHED_GRIDS, ids=grid_id)
def test_only_the_ratio_of_importances_counts(grid):
    blocks = to_blocks(weight_of((8, 256)), grid.block_size)
    importance = np.random.default_rng(3).random(grid.block_size, dtype=np.float32)
    huge, tiny, zero = (grid.fit(blocks, importance * np.float32(factor)) for factor in (2.0**60, 2.0**-60, 0))
    even = grid.fit(blocks, np.ones(1, np.float32))
    assert all(np.array_equal(huge[key], tiny[key]) and np.array_equal(zero[key], even[key]) for key in huge)


@given(
    grid=st.sampled_from(SEARCHED_GRIDS),
    block=hnp.arrays(np.float32, (2, 40), elements=st.floats(-1000, 1000, width=32)),
)
@settings(max_examples=60, deadline=None)
def test_a_search_never_leaves_the_range_far(grid, block):
    out = dequantize(rtn("w", block, grid, Axis.PER_OC))
    assert (np.abs(out) <= 1.5 * np.abs(block).max() + 1e-3).all()


@settings(max_examples=60, deadline=None)
@given(
    grid=st.sampled_from(MIN_MAX_GRIDS),
    block=hnp.arrays(np.float32, (3, 40), elements=st.floats(-1000, 1000, width=32)),
)
def test_any_weights_stay_in_their_range(grid, block):
    """Whatever goes in, no weight leaves its group's range by more than a step, and everything stays finite."""
    tensor = rtn("w", block, grid, Axis.PER_OC)
    out = dequantize(tensor)
    assert np.isfinite(out).all()
    scale, _ = grid.scale_zero(tensor.params)
    step = np.abs(spread(scale, grid.group_size, 40))
    float16_floor = 2**grid.bits * 2.0**-24  # smaller steps do not exist in the file
    assert (np.abs(out - block) <= step * 1.1 + np.abs(block).max() * EPS16 * 2 + float16_floor).all()


@given(hnp.arrays(np.float32, (3, 37), elements=st.floats(-1, 1, width=32)), st.sampled_from([16, 32, 64]))
def test_blocks_keep_the_rows_and_fill_with_zeros(rows, size):
    blocks = to_blocks(rows, size)
    assert np.array_equal(blocks.reshape(3, -1)[:, :37], rows) and not blocks.reshape(3, -1)[:, 37:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nf4", 4, 32), "grid='nf4': unknown"),
        (("q4_0", 5, 32), "stores 4 bits, but bits=5"),
        (("q4_0", 4, 64), "has groups of 32, not 64"),
        (("q4_1", 4, 32, True), "not symmetric; choose q4_0 or iq4_nl or "),
        (("q2_k", 2, 16, True), "is not symmetric; choose tq2_0 or iq2_xxs or "),
        (("q4_0", 4, 32, True, "float32"), "grid='q4_0' has scales of its own; drop scale_dtype='float32'"),
        (("int", 4, 32, True, "bfloat16"), "scale_dtype='bfloat16': choose one of float16, float32"),
        (("int", 5, 32), "the int grid stores 2, 3, 4, 8 bits"),
        (("int", 4, 48), "group size 48: must be a power of two of at least 16"),
    ],
)
def test_contradictions_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        make_grid(*arguments)
