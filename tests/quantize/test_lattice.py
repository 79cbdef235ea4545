"""Grids of words: the nearest of all words and signs, and what GPTQ and its polish do with several channels at a time."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from exporter.gguf.blocks import pack_blocks
from exporter.targets import TARGETS
from exporter.writers import WRITERS
from quantize.blocks import dequantize, per_code
from quantize.checkpoint import open_checkpoint
from quantize.grids import GRIDS
from quantize.grids.lattice import LATTICE_GRIDS
from quantize.loss import output_loss
from quantize.rounding.gptq import gptq, visit_of
from quantize.rounding.in_turn import channels
from quantize.rounding.polish import polish, visit_codes
from quantize.rounding.rtn import rtn
from quantize.rounding.words import round_words
from quantize.run.pipeline import quantize_checkpoint
from quantize.types import Axis, InputStats
from runtime_checks.checks.verify import verify
from tests.cases import config_of, stats_of, weight_of
from tests.tiny import make_tiny_model

GRID_IDS = [grid.name for grid in LATTICE_GRIDS]


def least_costs(grid, x, w, scale):
    """The least weighed error of one word of the book, with an even and with an odd number of negative weights."""
    signs = np.array(list(product([1, -1], repeat=len(x))), np.float32)
    cost = np.full(2, np.inf)
    for sign in signs:
        error = np.square(scale * sign[:, None] * grid.words.book - x[:, None]).T @ w
        odd = int((sign < 0).sum() % 2)
        cost[odd] = min(cost[odd], error.min())
    return cost


@pytest.mark.parametrize("grid", LATTICE_GRIDS, ids=GRID_IDS)
def test_no_word_with_any_signs_is_nearer(grid):
    rng = np.random.default_rng(3)
    dims, length = grid.words.dims, len(grid.words.book)
    x, w = rng.standard_t(4, (12, dims)).astype(np.float32), rng.uniform(0.1, 2, (12, dims)).astype(np.float32)
    scale = np.float32(1.5 / grid.words.book.max())
    found = grid.decode(grid.spelled(x, w, np.full(12, scale)), scale, np.float32(0))
    for row in range(12):
        halves = [least_costs(grid, x[row, i : i + length], w[row, i : i + length], scale) for i in range(0, dims, length)]
        even, odd = halves[0]
        for other in halves[1:]:
            even, odd = min(even + other[0], odd + other[1]), min(even + other[1], odd + other[0])
        best = even if grid.even else min(even, odd)
        assert float(w[row] @ np.square(found[row] - x[row])) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("grid", LATTICE_GRIDS, ids=GRID_IDS)
def test_weights_of_one_size_come_out_as_they_are(grid):
    """But for d's float16: the book has a word of eight times its least magnitude."""
    signs = np.where(np.arange(256) % 4 < 2, 1, -1).astype(np.float32)
    weight = 0.37 * signs[None]
    np.testing.assert_allclose(dequantize(rtn("w", weight, grid, Axis.PER_OC)), weight, rtol=1e-3)


@pytest.mark.parametrize("grid", LATTICE_GRIDS, ids=GRID_IDS)
def test_whatever_rounds_them_they_are_words(grid):
    weight, stats = weight_of((16, 512)), stats_of(512, rows=16)
    nearest = rtn("w", weight, grid, Axis.PER_OC, stats)
    by_gptq = gptq(nearest, weight, stats)
    tensors = [nearest, by_gptq, polish(by_gptq, weight, stats)]
    tensors.append(rtn("w", weight.T.copy(), grid, Axis.PER_IC, stats_of(16, rows=512)))
    losses = [output_loss(weight, dequantize(tensor), stats) for tensor in tensors[:3]]
    assert losses[1] < 0.9 * losses[0] and losses[2] < losses[1]
    for tensor in tensors:
        pack_blocks(tensor)  # which refuses anything else


@pytest.mark.parametrize("grid", LATTICE_GRIDS, ids=GRID_IDS)
def test_each_channel_bears_the_steps_of_those_before(grid):
    """Those of its own word too."""
    count = 2 * grid.words.dims
    wanted, mix = weight_of((count, 30)), weight_of((count, count), seed=1) / 4
    these = channels(wanted, mix, scale=np.full_like(wanted, 0.05 / grid.levels.max() * 4), zero=np.zeros_like(wanted))
    round_words(these, grid, np.linspace(1, 2, count, dtype=np.float32))
    for i in range(count):
        target = wanted[i] - mix[i, :i] @ these.steps[:i]
        np.testing.assert_allclose(these.steps[i], target - these.values[i], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(these.values, grid.decode(these.codes, these.scale, these.zero))


@pytest.mark.parametrize("name", GRID_IDS)
def test_llama_cpp_runs_what_gptq_and_learning_leave(tmp_path, name):
    model = make_tiny_model(tmp_path / "model", hidden=256, ffn=256, layers=1)
    source = open_checkpoint(model)
    config = config_of("gptq-oc", grid=name, embedding=name, calibration_tokens=8192, block_steps=10)
    store = quantize_checkpoint(source, tmp_path / "store", config, TARGETS["llama.cpp"])
    assert {record.grid.name for record in store.records.values() if record.grid} == {name}
    checks = verify(WRITERS["gguf"].write(store, tmp_path / "out.gguf"), source, store)
    assert not [check for check in checks if not check.ok]
    assert any("llama.cpp" in check.name for check in checks)


def test_a_word_is_weighed_by_what_its_errors_cost_in_the_end():
    """The diagonal of the inverse of the inverse Hessian's corner, which is that of the visit's factor."""
    grid, stats = GRIDS["iq3_s"], stats_of(8)
    order, factor = visit_of(stats.hessian, grid.formula.dims)
    assert sorted(order[:4]) in ([0, 1, 2, 3], [4, 5, 6, 7]) and sorted(order) == list(range(8))
    seen = []

    class Watched:
        formula, decode = grid.formula, grid.decode

        @staticmethod
        def encode(x, scale, zero, importance):
            seen.append(importance)
            return grid.encode(x, scale, zero, importance)

    these = channels(weight_of((8, 5)), (factor / factor.diagonal()[:, None]).T, scale=np.ones((8, 5), np.float32))
    round_words(these, Watched, factor.diagonal() ** -2)
    damped = stats.hessian[np.ix_(order, order)] + 0.01 * np.diag(stats.hessian).mean() * np.eye(8)
    inverse = np.linalg.inv(damped)
    # of the first word, once the second has made up for it; of the second, with nothing left behind it
    np.testing.assert_allclose(seen[0], np.diag(np.linalg.inv(inverse[:4, :4])), rtol=1e-3)
    np.testing.assert_allclose(seen[1], np.diag(damped)[4:], rtol=1e-3)


@pytest.mark.parametrize("grid", LATTICE_GRIDS, ids=GRID_IDS)
def test_a_second_visit_raises_no_row_s_error_and_leaves_unseen_words(grid):
    """Of neighbours so alike that each alone would make up for all of them; the unseen one has a loud neighbour."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((512, 32)), 8, axis=1) + 0.4 * rng.standard_normal((512, 256))
    x[:, 40], x[:, 41] = 0, 10 * x[:, 41]
    hessian = (x.T @ x / 512).astype(np.float32)
    weight, stats = weight_of((24, 256)), InputStats(hessian, 512)
    tensor = rtn("w", weight, grid, Axis.PER_OC, stats)
    moved = visit_codes(tensor, weight, stats)
    losses = [np.einsum("oi,ij,oj->o", error, hessian, error) for error in (weight - dequantize(t) for t in (tensor, moved))]
    assert (losses[1] <= losses[0] * (1 + 1e-4)).all() and losses[1].sum() < losses[0].sum()
    dims = grid.formula.dims
    word = slice(40 // dims * dims, 40 // dims * dims + dims)
    np.testing.assert_array_equal(moved.codes[:, word], tensor.codes[:, word])


@pytest.mark.parametrize("grid", LATTICE_GRIDS, ids=GRID_IDS)
def test_importance_chooses_the_word_and_none_is_felt_as_even(grid):
    weight, importance = weight_of((8, 256)), np.random.default_rng(0).random(256, dtype=np.float32) ** 4
    tensor = rtn("w", weight, grid, Axis.PER_OC)
    scale, zero = per_code(tensor)

    def loss(known):
        return float((np.square(grid.decode(grid.encode(weight, scale, zero, known), scale, zero) - weight) * importance).sum())

    assert loss(importance) < 0.97 * loss(None)
    assert loss(importance * np.float32(2.0**60)) == loss(importance * np.float32(2.0**-60)) == loss(importance)
    assert loss(np.zeros(256, np.float32)) == loss(np.ones(256, np.float32)) == loss(None)
