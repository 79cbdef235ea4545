"""Learned rounding begins where the rounder stopped, and lowers an error that it does not see; what it rests on is checked by
differences and by the whole model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from exporter.targets import TARGETS
from quantize.block import Block, Kit, Rounded
from quantize.blocks import dequantize
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.row_order import RowOrders
from quantize.errors import CalibrationError, ConfigError
from quantize.methods import ROUNDERS
from quantize.source import build_model, measure_curvature, walk_blocks
from quantize.steps import learn_codes as block_rounding
from quantize.steps.learn_codes import LearnCodes, learn_rounding
from quantize.types import Axis, RowOrder, TensorPlan
from tests.cases import AXES, GRIDS, config_of, grid_id, grid_named, weight_of
from tests.tiny import make_tiny_model

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
KINDS = ["gradient", "unit", "none"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("blocks") / "model", hidden=256, ffn=256))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(3).integers(0, 320, (16, 24))


def kit_of(source, steps, order=RowOrder.HF, run=None):
    return Kit(TARGETS["onnxruntime"], RowOrders(source.config, order), ROUNDERS, 1.5, 0, steps, "builtin", run)


def runs(source, tokens, kind):
    return walk_blocks(source, tokens, measure_curvature(source, tokens, 0) if kind == "gradient" else kind, 0, taught=True)


def hidden(source, tokens, changed, layers):
    """F32[sequences, length, hidden] after so many layers of the whole model, ``changed`` in place of its tensors."""
    model = build_model(source.config, lambda name: changed.get(name, source.read(name)), source.tied)
    kept = []
    model.model.layers[layers - 1].register_forward_hook(
        lambda _m, _a, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(torch.from_numpy(tokens))
    return kept[0].numpy()


def cost(source, tokens, kind, outputs, error):
    """What the loss of layer 0 should be, from the definitions."""
    if kind == "gradient":
        curvature = measure_curvature(source, tokens, 0)
        weights, rows = curvature.tokens[DOWN].reshape(tokens.shape), curvature.rows[DOWN]
    else:
        size = np.square(outputs).mean(-1)
        weights, rows = 1 / size if kind == "unit" else np.ones_like(size), np.full(error.shape[-1], 1 / error.shape[-1])
    return np.square(error) @ rows * weights


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_weighed_errors_of_the_layers_output(source, tokens, kind):
    changed = {DOWN: source.read(DOWN) + 0.05 * weight_of(source.specs[DOWN].shape)}
    student = next(runs(source, tokens, kind)).student
    some = np.array([1, 5, 6])
    assert student.loss(some) < 1e-9
    student.put(DOWN, changed[DOWN], learns=False)
    outputs = hidden(source, tokens, {}, 1)
    costs = cost(source, tokens, kind, outputs, hidden(source, tokens, changed, 1) - outputs)
    assert student.loss(some) == pytest.approx(costs[some].mean(), rel=1e-3)


def test_each_layer_gets_what_the_changed_ones_before_it_give(source, tokens):
    changed = {name: source.read(name) * np.float32(1.2) for name in (UP, NORM)}
    walk = runs(source, tokens, "none")
    first = next(walk).student
    for name, weight in changed.items():
        first.put(name, weight, learns=False)
    error = hidden(source, tokens, changed, 2) - hidden(source, tokens, {}, 2)
    assert next(walk).student.loss(np.arange(16)) == pytest.approx(np.square(error).mean(), rel=1e-3)


@pytest.mark.parametrize("name", [DOWN, UP, "model.layers.0.self_attn.q_proj.weight"])
def test_gradients_are_differences_of_losses(source, tokens, name):
    student, some = next(runs(source, tokens, "gradient")).student, np.arange(4)
    start = source.read(name) * np.float32(1.1)
    student.put(name, start, learns=True)
    gradients = student.gradients(some)
    assert gradients.keys() == {name}
    losses = []
    for step in (1e-4, -1e-4):
        student.put(name, start + np.float32(step) * np.sign(gradients[name]), learns=True)
        losses.append(student.loss(some))
    assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(float(np.abs(gradients[name]).sum()), rel=0.05)


def moved_codes(tensor, seed):
    """The tensor with one code in five a neighbour's, as GPTQ leaves them."""
    rng = np.random.default_rng(seed)
    values = dequantize(tensor)
    nudged = values + values.std() * (rng.random(values.shape) < 0.2).astype(np.float32) * rng.standard_normal(values.shape)
    return replace(tensor, codes=block_rounding._Positions(tensor, values)._codes(nudged.astype(np.float32)))


def by_words(rows, grid):
    """[rows, cols] -> [rows, words, dims]."""
    return rows.reshape(len(rows), -1, grid.formula.dims)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_positions_begin_inside_the_codes_that_are_there(grid, axis):
    weight = weight_of((256, 512))
    tensor = moved_codes(ROUNDERS["rtn"]("w", weight, grid, axis, None), 1)
    knobs = block_rounding._Positions(tensor, weight)
    before = dequantize(tensor)
    assert np.array_equal(knobs._codes(knobs._positions), tensor.codes)
    asked = np.abs(before - weight)
    assert (np.abs(knobs._positions - weight) <= asked * 1.0001).all()
    nearest = knobs._codes(weight) == tensor.codes
    nearest = np.repeat(by_words(nearest, grid).all(-1), grid.formula.dims, axis=1)
    assert np.array_equal(
        (knobs._positions if axis is Axis.PER_OC else knobs._positions.T)[nearest],
        (weight if axis is Axis.PER_OC else weight.T)[nearest],
    )
    slope = np.sign(weight_of((256, 512)[::-1]).T)
    knobs.move(slope, 400.0, 1)
    if knobs.tensor.grid.bits < 8:
        moved = dequantize(replace(knobs.tensor, params=tensor.params)) - before
        against = by_words(moved * slope if axis is Axis.PER_OC else (moved * slope).T, grid).sum(-1)
        assert (moved != 0).any() and (against <= 1e-6 * (grid.formula.dims > 1)).all()
    knobs.take_back()
    assert np.array_equal(dequantize(knobs.tensor), before)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", ["int", "q4_1", "iq4_nl", "mxfp4", "q2_k"])
def test_learning_lowers_the_loss_of_sequences_that_no_step_saw(source, grid, axis, monkeypatch):
    monkeypatch.setattr(block_rounding, "CODE_RATE", 0.01)
    orders, tokens = RowOrders(source.config, RowOrder.GGML), np.random.default_rng(4).integers(0, 320, (72, 64))
    run = next(runs(source, tokens, "gradient"))
    names = [DOWN, "model.layers.0.self_attn.k_proj.weight"]
    weights = {name: orders.to_target(name, source.read(name)) for name in names}
    tensors = [ROUNDERS["rtn"](name, weight, grid_named(grid), axis, None) for name, weight in weights.items()]
    kit = kit_of(source, 60, RowOrder.GGML)
    found = learn_rounding([(tensor, weights[tensor.name]) for tensor in tensors], run.student, kit)
    assert found.after < 0.98 * found.before
    for old, new in zip(tensors, found.tensors, strict=True):
        run.student.put(new.name, orders.to_source(new.name, dequantize(new)), learns=False)
        assert (new.name, new.axis, new.grid) == (old.name, old.axis, old.grid)
        assert (new.codes != old.codes).any()
        assert {key: value.dtype for key, value in new.params.items()} == {key: value.dtype for key, value in old.params.items()}
    assert run.student.loss(np.arange(8) * 9) == pytest.approx(found.after, rel=1e-5)


def test_what_is_kept_as_floats_counts_as_it_will_be_stored(source, tokens):
    walk = runs(source, tokens, "gradient")
    weights = {NORM: source.read(NORM) * np.float32(1.3), DOWN: source.read(DOWN)}
    down = ROUNDERS["rtn"](DOWN, weights[DOWN], GRIDS[0], Axis.PER_OC, None)
    plan = TensorPlan(DOWN, down.shape, {Axis.PER_OC: down.grid})
    block = Block({DOWN: plan}, weights, {}, rounded={DOWN: Rounded(down, "rtn", 0.5)})
    run = next(walk)
    student = run.student
    for name, weight in ((NORM, weights[NORM]), (DOWN, dequantize(down))):
        student.put(name, weight, learns=False)
    expected = student.loss(np.arange(8) * 2)
    student.put(NORM, source.read(NORM), learns=False)
    learned = LearnCodes()(block, [DOWN], kit_of(source, 2, run=run))
    assert learned.report["learned"][0] == pytest.approx(expected, rel=1e-5)
    assert learned.tensors == block.tensors
    assert learned.rounded[DOWN][1:] == ("rtn", 0.5)


def test_learning_that_does_not_help_is_undone(source, tokens, monkeypatch):
    monkeypatch.setattr(block_rounding, "CODE_RATE", 5.0)
    run, weight = next(runs(source, tokens, "gradient")), source.read(DOWN)
    tensor = ROUNDERS["rtn"](DOWN, weight, GRIDS[0], Axis.PER_OC, None)
    found = learn_rounding([(tensor, weight)], run.student, kit_of(source, 3))
    assert found.before == found.after
    assert np.array_equal(dequantize(found.tensors[0]), dequantize(tensor))


def test_a_text_too_short_to_learn_from_is_refused(source, tokens):
    student = next(runs(source, tokens[:5], "unit")).student
    with pytest.raises(CalibrationError, match=r"5 sequences, but block_steps needs 8 to judge by and 4 to learn from"):
        learn_rounding([], student, kit_of(source, 3))


def test_an_importance_matrix_has_no_layers_to_learn_by(tmp_path):
    with pytest.raises(ConfigError, match="block_steps: need the source run over a text, not imatrix; give block_steps=0, or"):
        config_of(imatrix=tmp_path / "m.gguf", block_steps=1)
    with pytest.raises(ConfigError, match="block_steps=-1: must not be negative"):
        config_of(block_steps=-1)
