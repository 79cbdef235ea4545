"""GPTQ against a textbook version of itself, and against RTN; on every grid and both axes."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from quantize.block import AxisChoice
from quantize.blocks import dequantize
from quantize.float_params import floats_of
from quantize.grids import make_grid
from quantize.grids.levels import Levels
from quantize.loss import output_loss
from quantize.methods import ROUNDERS
from quantize.rounding.gptq import gptq
from quantize.rounding.polish import visit_codes
from quantize.rounding.refit import refit_floats
from quantize.rounding.rtn import rtn
from quantize.steps.axis import choose_axis, within_slowdown
from quantize.types import Axis, InputStats
from tests.cases import AXES, GRIDS, grid_id, stats_of, weight_of


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_gptq_beats_rtn_under_its_hessian(grid, axis):
    weight, stats = weight_of((64, 160)), stats_of(160)
    by_rtn = output_loss(weight, dequantize(ROUNDERS["rtn"]("w", weight, grid, axis, None)), stats)
    by_gptq = output_loss(weight, dequantize(ROUNDERS["gptq"]("w", weight, grid, axis, stats)), stats)
    assert by_gptq < 0.9 * by_rtn


def textbook_gptq(weight, grid, hessian):
    """Column by column with the explicit inverse (OBQ's update), no blocks, no Cholesky: PER_IC only."""
    order = np.argsort(-np.diag(hessian), kind="stable")
    damped = hessian.astype(np.float64) + 0.01 * np.diag(hessian).mean(dtype=np.float64) * np.eye(len(hessian))
    work, out, left = weight.astype(np.float64).copy(), np.empty_like(weight), list(order)
    while left:
        inverse, j = np.linalg.inv(damped[np.ix_(left, left)]), left[0]
        column = work[:, j].astype(np.float32)[:, None]
        out[:, j] = dequantize(ROUNDERS["rtn"]("c", column, grid, Axis.PER_IC, None))[:, 0]
        error = (work[:, j] - out[:, j]) / inverse[0, 0]
        work[:, left[1:]] -= np.outer(error, inverse[0, 1:])
        left = left[1:]
    return out


def test_gptq_equals_the_textbook(monkeypatch):
    monkeypatch.setattr(import_module("quantize.rounding.gptq"), "FITTED_TOGETHER", 1)
    grid = make_grid("q8_0", 8, 32)  # its fit does not search, so both fit alike
    weight, stats = weight_of((32, 24)), stats_of(24)
    ours = dequantize(gptq(rtn("w", weight, grid, Axis.PER_IC, stats), weight, stats))
    expected = textbook_gptq(weight, grid, stats.hessian)
    assert (ours != expected).mean() < 0.01  # a float32 tie may fall the other way
    assert np.abs(ours - expected).max() < 0.01


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_a_second_visit_lowers_the_error_of_codes_and_of_floats(grid, axis):
    weight, stats = weight_of((64, 160)), stats_of(160, rows=64)
    tensor = gptq(rtn("w", weight, grid, axis, stats), weight, stats)
    moved = visit_codes(tensor, weight, stats)
    losses = [output_loss(weight, dequantize(item), stats) for item in (tensor, moved, refit_floats(moved, weight, stats))]
    assert losses[1] < losses[0]
    assert losses[2] < losses[1] or not floats_of(tensor)
    assert all(np.array_equal(moved.params[key], value) for key, value in tensor.params.items())


def test_floats_by_conjugate_gradients_are_those_of_least_squares():
    weight, stats, grid = weight_of((4, 96)), stats_of(96), make_grid("int", 3, 32, scale_dtype="float32")
    tensor = gptq(rtn("w", weight, grid, Axis.PER_OC, stats), weight, stats)
    ours = refit_floats(tensor, weight, stats).params["scale"]
    root = np.linalg.cholesky(stats.hessian.astype(np.float64)).T
    for row in range(4):
        levels = (tensor.codes[row] - np.repeat(tensor.params["zero_point"][row], 32).astype(float)) * np.eye(3).repeat(32, 1)
        expected, *_ = np.linalg.lstsq(root @ levels.T, root @ weight[row], rcond=None)
        np.testing.assert_allclose(ours[row], expected, rtol=1e-3)


def test_gptq_with_silent_channels_leaves_no_nan():
    stats = stats_of(48)
    hessian = stats.hessian.copy()
    hessian[5], hessian[:, 5] = 0, 0
    for matrix in (hessian, np.zeros_like(hessian)):
        tensor = ROUNDERS["gptq"]("w", weight_of((32, 48)), make_grid("int", 4, 32), Axis.PER_OC, InputStats(matrix, 9))
        assert np.isfinite(dequantize(tensor)).all()


def test_same_inputs_give_same_codes():
    weight, stats, grid = weight_of((64, 64)), stats_of(64), make_grid("int", 3, 32)
    first, second = (gptq(rtn("w", weight, grid, Axis.PER_IC, stats), weight, stats) for _ in range(2))
    assert np.array_equal(first.codes, second.codes)


def test_layer_loss_is_the_mean_squared_output_error():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((100, 24)).astype(np.float32), weight_of((16, 24))
    other = weight + rng.standard_normal(weight.shape).astype(np.float32) * np.float32(0.01)
    stats = InputStats(x.T @ x / np.float32(100), 100)
    assert output_loss(weight, other, stats) == pytest.approx(float(np.square(x @ (weight - other).T).mean()), rel=1e-4)


def test_a_tie_goes_to_per_oc():
    assert choose_axis({Axis.PER_IC: 1.0, Axis.PER_OC: 1.0}).axis is Axis.PER_OC
    assert choose_axis({Axis.PER_IC: 0.9, Axis.PER_OC: 1.0}).axis is Axis.PER_IC


def test_a_sensitive_input_channel_asks_for_per_ic_and_a_large_row_for_per_oc():
    rng, grid = np.random.default_rng(0), make_grid("int", 4, 32)
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    sensitive, even = np.eye(64, dtype=np.float32), np.eye(64, dtype=np.float32)
    sensitive[7, 7] = 1e4  # a massive activation, on a channel whose weights are smaller than its neighbours'
    quiet_column, loud_row = weight.copy(), weight.copy()
    quiet_column[:, 7] *= 0.1
    loud_row[7] = 50  # exact inside its own row, a wide range for every column that it touches
    for value, hessian, expected in ((quiet_column, sensitive, Axis.PER_IC), (loud_row, even, Axis.PER_OC)):
        stats = InputStats(hessian, 64)
        loss = {a: output_loss(value, dequantize(ROUNDERS["rtn"]("w", value, grid, a, None)), stats) for a in Axis}
        assert choose_axis(loss).axis is expected


def test_slowdown_takes_back_what_buys_least():
    def choice(oc: float, ic: float) -> AxisChoice:
        return choose_axis({Axis.PER_OC: oc, Axis.PER_IC: ic})

    choices = {"much": choice(10, 1), "little": choice(10, 9.9), "never": choice(1, 2)}
    cost = {name: {Axis.PER_OC: 1.0, Axis.PER_IC: 5.0} for name in choices}
    kept = within_slowdown(choices, cost, 3.0)  # 3 * 3 s: one split layer (5 + 1 + 1) fits, two (11) do not
    assert {name: value.axis for name, value in kept.items()} == {
        "much": Axis.PER_IC,
        "little": Axis.PER_OC,
        "never": Axis.PER_OC,
    }
    assert kept["little"].loss == choices["little"].loss
    assert within_slowdown(choices, cost, 100.0) == choices


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_rtn_with_an_importance_loses_less_of_what_matters(grid, axis):
    """From the diagonal alone: a whole Hessian gives the same codes; 8 bits have no room to gain, and where nothing is known of
    output channels the fit of words and levels already counts all alike."""
    weight, stats = weight_of((64, 160)), stats_of(160)
    diagonal = InputStats(np.diag(stats.hessian).copy(), stats.n_tokens)
    plain, weighed, same = (ROUNDERS["rtn"]("w", weight, grid, axis, known) for known in (None, diagonal, stats))
    assert np.array_equal(weighed.codes, same.codes)
    before, after = (output_loss(weight, dequantize(tensor), diagonal) for tensor in (plain, weighed))
    alike = grid.formula.dims > 1 or isinstance(grid, Levels)
    no_gain = grid.bits == 8 or (alike and axis is Axis.PER_IC)
    assert after <= before * (1 if no_gain else 0.99)


def test_layer_loss_of_a_diagonal_is_that_of_the_matrix():
    weight, importance = weight_of((16, 24)), np.arange(24, dtype=np.float32)
    other = weight + np.float32(0.01)
    loss, expected = (output_loss(weight, other, InputStats(known, 9)) for known in (importance, np.diag(importance)))
    assert loss == pytest.approx(expected, rel=1e-6) and loss == pytest.approx(1e-4 * importance.sum(), rel=1e-3)
