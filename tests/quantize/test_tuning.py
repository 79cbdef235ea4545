"""Tuning moves floats alone, and lowers a loss that it does not see; what it rests on is checked by differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantize import source as source_room
from quantize.blocks import dequantize
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.row_order import RowOrders
from quantize.float_params import floats_of, per_block, per_weight, shares, with_floats
from quantize.loss import output_loss
from quantize.methods import ROUNDERS
from quantize.source import ModelStudent, build_model, curvature, logits, measure_curvature, walk_blocks
from quantize.source.causal import Causal
from quantize.statistics.measured import Measured
from quantize.steps import learn_floats as tuning
from quantize.types import Axis, PlainTensor, RowOrder
from quantize.weight import weight_of as weight_of_tensor
from tests.cases import AXES, GRIDS, grid_id, grid_named, weight_of
from tests.tiny import make_tiny_model

DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def source(request, tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("tuning") / "model", tied=request.param))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(3).integers(0, 320, (14, 24))


def divergence(source, tokens, changed):
    """Mean KL divergence in nats per token from the source to it with other weights, from whole logits."""

    def log_p(read):
        values = logits(build_model(source.config, read, source.tied), tokens).astype(np.float64)
        return values - np.log(np.exp(values).sum(-1, keepdims=True))

    before, after = log_p(source.read), log_p(lambda name: changed.get(name, source.read(name)))
    return float((np.exp(before) * (before - after)).sum(-1).mean())


def test_a_student_with_the_sources_weights_loses_nothing(source, tokens):
    student = ModelStudent(source, tokens)
    student.put(DOWN, source.read(DOWN), learns=True)
    assert student.loss(np.arange(14)) < 1e-6


def test_losses_are_those_of_whole_logits(source, tokens):
    student, noisy = ModelStudent(source, tokens), source.read(DOWN) + 0.05 * weight_of(source.specs[DOWN].shape)
    student.put(DOWN, noisy, learns=False)
    assert student.loss(np.arange(3, 6)) == pytest.approx(divergence(source, tokens[3:6], {DOWN: noisy}), rel=1e-2)


@pytest.mark.parametrize("name", [DOWN, NORM, "model.embed_tokens.weight"])
def test_gradients_are_differences_of_losses(source, tokens, name):
    student, some = ModelStudent(source, tokens), np.arange(4)
    start = source.read(name) * 1.1
    student.put(name, start, learns=True)
    gradients = student.gradients(some)
    direction = np.sign(gradients[name])
    losses = []
    for step in (1e-3, -1e-3):
        student.put(name, start + np.float32(step) * direction, learns=True)
        losses.append(student.loss(some))
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(float(np.abs(gradients[name]).sum()), rel=0.05)


def test_every_other_layer_keeps_next_to_nothing_for_the_way_back(source, tokens):
    """Most of what tuning needs beside the weights."""

    def kept(model):
        model.requires_grad_()
        sizes = list[int]()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            model.model(torch.from_numpy(tokens), use_cache=False)
        return sum(sizes)

    assert kept(ModelStudent(source, tokens)._causal._model) < 0.7 * kept(build_model(source.config, source.read, source.tied))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_weights_are_linear_in_the_floats(grid, axis):
    tensor = ROUNDERS["rtn"]("w", weight_of((256, 512)), grid, axis, None)
    parts, floats = shares(tensor), floats_of(tensor)
    halved = dequantize(with_floats(tensor, {key: value / 2 for key, value in floats.items()}))
    expected = dequantize(tensor) - sum(part / 2 for part in parts.values())
    np.testing.assert_allclose(halved, expected, atol=2e-3 * np.abs(expected).max())
    for part in parts.values():
        sums = per_block(tensor, part)
        assert all(sums.shape == value.shape for value in floats.values())
        assert per_weight(tensor, sums).shape == part.shape


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", ["int", "q4_1", "q2_k"])
def test_tuning_lowers_the_loss_and_leaves_the_codes(grid, axis, tmp_path, tokens, monkeypatch):
    monkeypatch.setattr(tuning, "RATE", 0.02)
    source = open_checkpoint(make_tiny_model(tmp_path / "model", hidden=256, ffn=256))
    rounded = ROUNDERS["rtn"](DOWN, source.read(DOWN), grid_named(grid), axis, None)
    off = with_floats(rounded, {key: value * np.float32(1.3) for key, value in floats_of(rounded).items()})
    tensors = [off, PlainTensor(NORM, source.read(NORM) * np.float32(0.8), "F32")]
    student = ModelStudent(source, tokens)
    found = tuning.tune(tensors, student, RowOrders(source.config, RowOrder.HF), tuning.tuning_schedule(12, 0))
    assert found.after < 0.95 * found.before
    for old, new in zip(tensors, found.tensors, strict=True):
        student.put(new.name, weight_of_tensor(new), learns=False)
        assert type(new) is type(old)
    assert student.loss(np.arange(8) * 14 // 8) == pytest.approx(found.after, rel=1e-5)
    assert np.array_equal(found.tensors[0].codes, tensors[0].codes)
    assert {key: value.dtype for key, value in found.tensors[0].params.items()} == {
        key: value.dtype for key, value in tensors[0].params.items()
    }


def test_tuning_that_does_not_help_is_undone(source, tokens, monkeypatch):
    monkeypatch.setattr(tuning, "RATE", 3.0)
    tensor = ROUNDERS["rtn"](DOWN, source.read(DOWN), GRIDS[0], Axis.PER_OC, None)
    found = tuning.tune(
        [tensor], ModelStudent(source, tokens), RowOrders(source.config, RowOrder.HF), tuning.tuning_schedule(2, 0)
    )
    assert found.before == found.after
    assert np.array_equal(dequantize(found.tensors[0]), dequantize(tensor))


def test_a_token_weighs_the_length_of_its_gradient(source, tokens):
    model = build_model(source.config, source.read, source.tied)
    causal, seen = Causal(model), []
    squares = curvature._Squares(curvature._Tables(*causal.head.shape))

    def keep(_module, _inputs, output):
        output.retain_grad()
        seen.append(output)

    model.model.layers[0].mlp.down_proj.register_forward_hook(keep)
    with causal.watched(squares.see):
        causal.hidden(torch.from_numpy(tokens[:1])).sin().sum().backward()
    found = {weight.parameter: one for weight, one in squares.marginals(tokens.shape[1])[0].items()}
    weights = {weight.parameter: one for weight, one in squares.marginals(tokens.shape[1])[1].items()}
    gradient = seen[0].grad[0].numpy()
    lengths = np.linalg.norm(gradient, axis=1)
    np.testing.assert_allclose(weights["model.layers.0.mlp.down_proj.weight"], lengths / lengths.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["model.layers.0.mlp.down_proj.weight"], np.square(gradient).mean(0) / 2, rtol=1e-5)


def test_curvature_predicts_the_divergence(source, tokens):
    measured = measure_curvature(source, tokens, seed=0)
    rng = np.random.default_rng(5)
    stats = {name: stat for run in walk_blocks(source, tokens, measured, 0) for name, stat in run.stats.items()} | dict(
        measured.tables
    )
    names = [name for name in stats if source.specs[name].shape == stats[name].row_weight.shape + stats[name].importance.shape]
    assert len(names) == len(stats)
    for group in (lambda name: "layers" in name, lambda name: "layers" not in name):
        weights = {name: source.read(name) for name in names if group(name)}
        changed = {
            name: weight + 0.02 * weight.std() * rng.standard_normal(weight.shape).astype(np.float32)
            for name, weight in weights.items()
        }
        predicted = sum(output_loss(weight, changed[name], stats[name]) for name, weight in weights.items())
        assert 0.6 < predicted / divergence(source, tokens, changed) < 1.6


def test_curvature_is_measured_once_for_the_same_text(source, tokens, monkeypatch):
    measured = Measured(source)
    found = measured.curvature(tokens, 7)
    monkeypatch.setattr(source_room, "measure_curvature", None)
    assert measured.curvature(tokens.copy(), 7) is found
    for other in ((tokens[:-1], 7), (tokens, 8)):
        with pytest.raises(TypeError):  # it would measure
            measured.curvature(*other)
