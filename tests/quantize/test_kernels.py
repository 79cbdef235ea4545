"""What numba compiles gives what numpy gives, written down once more without its loops."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.blocks import spread, to_blocks
from quantize.grids.codebook import IQ4
from quantize.grids.least_squares import Nearest, best_centred, best_line, best_scale
from quantize.kernels import WIDTH
from quantize.rounding.in_turn import channels, round_in_turn
from tests.cases import GRIDS, grid_id, weight_of

CHANNELS = 6


def some_channels(grid, outs: int):
    """F32[CHANNELS, outs] wanted, scale and zero, as the grid fits them."""
    wanted = weight_of((CHANNELS, outs), seed=outs)
    params = grid.fit(to_blocks(wanted, grid.block_size))
    return wanted, *(np.ascontiguousarray(spread(value, grid.group_size, outs)) for value in grid.scale_zero(params))


@pytest.mark.parametrize("outs", [8, WIDTH + 40])
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_channels_that_do_not_mix_are_encoded_and_decoded(grid, outs):
    wanted, scale, zero = some_channels(grid, outs)
    scale[:, 3] = 0  # a group of zeros, as some grids store it
    these = channels(wanted, np.zeros((CHANNELS, CHANNELS), np.float32), scale=scale, zero=zero)
    round_in_turn(these, grid)
    alive = scale != 0 if grid.name == "int" else np.ones_like(scale, bool)  # an int grid has no such scale
    codes = grid.encode(wanted, np.where(alive, scale, 1), zero) if grid.name == "int" else grid.encode(wanted, scale, zero)
    np.testing.assert_array_equal(these.codes[alive], codes[alive])
    np.testing.assert_array_equal(these.values[alive], grid.decode(codes, scale, zero)[alive])
    np.testing.assert_array_equal(these.steps[alive], (wanted - these.values)[alive])


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_each_channel_is_rounded_less_the_steps_of_those_before(grid, held):
    wanted, scale, zero = some_channels(grid, 40)
    mix, old = weight_of((CHANNELS, CHANNELS), seed=1) / 4, weight_of(wanted.shape, seed=2)
    these = channels(wanted, mix, old if held else None, scale, zero)
    round_in_turn(these, grid, 0, 2)
    round_in_turn(these, grid, 2)
    for i in range(CHANNELS):
        target = wanted[i]
        for k in range(i):
            target = target - mix[i, k] * these.steps[k]
        np.testing.assert_array_equal(these.codes[i], grid.encode(target, scale[i], zero[i]))
        np.testing.assert_array_equal(these.steps[i], (old[i] if held else target) - these.values[i])


def groups(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return weight_of((32, 50), seed), rng.uniform(0.1, 2, (32, 50)).astype(np.float32)


@pytest.mark.parametrize("nearest", [Nearest(-8, 7), Nearest(-127, 113, IQ4.nearest.table)], ids=["whole", "levels"])
def test_best_scale_is_no_worse_than_any_start_and_fits_its_codes(nearest):
    x, w = groups(1)
    starts = np.linspace(nearest.low, nearest.high, 9)[[0, 1, 7, 8]]
    scale, square = best_scale(x, w, nearest, starts)
    extreme = np.where(-x.min(0) > x.max(0), x.min(0), x.max(0))
    best = loss_of(x, w, nearest(x / scale) * scale)
    for start in starts:
        levels = nearest(x * (np.float32(start) / extreme))
        own = (w * x * levels).sum(0) / (w * levels * levels).sum(0)
        assert (best <= loss_of(x, w, levels * own) * (1 + 1e-4)).all()
    assert (square > 0).all()


def test_best_line_is_no_worse_than_any_start():
    x, w = groups(2)
    starts = np.array([13, 15, 16])
    for ceiling in (0.0, np.inf):
        scale, low, _ = best_line(x, w, 15, starts, ceiling)
        assert (low <= ceiling).all()
        best = loss_of(x, w, np.clip(np.rint((x - low) / scale), 0, 15) * scale + low)
        floor = np.minimum(x.min(0), np.float32(ceiling))
        for start in starts:
            spread_over = (x.max(0) - floor) / start
            plain = np.clip(np.rint((x - floor) / spread_over), 0, 15) * spread_over + floor
            assert (best <= loss_of(x, w, plain) * (1 + 1e-4)).all()


@pytest.mark.parametrize("side", [np.negative, np.positive, np.abs])
def test_best_centred_is_no_worse_than_any_start_from_either_end(side):
    x, w = groups(3)
    x = side(x)
    starts = np.array([14, 15, 16], np.float32)
    scale, zero = best_centred(x, w, 15, starts)
    assert ((zero >= 0) & (zero <= 15) & (zero == np.rint(zero))).all()
    best = loss_of(x, w, (np.clip(np.rint(x / scale) + zero, 0, 15) - zero) * scale)
    low, high = np.minimum(x.min(0), 0), np.maximum(x.max(0), 0)
    for start in starts:
        step = (high - low) / start
        for end in (-low / step, 15 - high / step):
            middle = np.clip(np.rint(end), 0, 15)
            plain = (np.clip(np.rint(x / step) + middle, 0, 15) - middle) * step
            assert (best <= loss_of(x, w, plain) * (1 + 1e-4)).all()


def loss_of(x, w, values) -> np.ndarray:
    return (w * (x - values).astype(np.float64) ** 2).sum(0)
