"""OmniQuant's clipping: nothing clipped is rounding by minimum and maximum, and no block loses to it on unseen sequences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exporter.targets import TARGETS
from exporter.writers import writer_of
from quantize import QuantizeConfig, build_plan, open_checkpoint, quantize_checkpoint
from quantize.blocks import dequantize
from quantize.errors import ConfigError
from quantize.methods import METHODS
from quantize.rounding.rtn import rtn
from quantize.steps.descent import judges_of
from quantize.steps.learn_clips import Clips, LearnClips
from quantize.types import Axis, TensorSpec
from runtime_checks.checks.verify import verify
from tests.cases import AXES, MIN_MAX_GRIDS, config_of, grid_id, grid_named, stats_of, weight_of
from tests.tiny import make_tiny_model

TOKENS = 16 * 512
SPECS = {name: TensorSpec(name, "F32", (64, 64)) for name in ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight")}


def clips(grid, axis=Axis.PER_OC, shape=(512, 512)):
    weight = weight_of(shape)
    return weight, Clips(rtn("w", weight, grid, axis), weight)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", MIN_MAX_GRIDS, ids=grid_id)
def test_nothing_clipped_is_rounding_to_nearest(grid, axis):
    weight, knobs = clips(grid, axis)
    plain = rtn("w", weight, grid, axis)
    assert np.array_equal(knobs.tensor.codes, plain.codes)
    assert all(np.array_equal(knobs.tensor.params[key], value) for key, value in plain.params.items())


@pytest.mark.parametrize("name", ["int", "q4_1", "q4_0", "q2_k"])
def test_ends_follow_the_slope(name):
    """Down the slope of a squared error, weighed by channel, there is less of it; and the search has less to begin with."""
    weight, knobs = clips(grid_named(name))
    stats = stats_of(512)

    def error(one):
        return float((np.square(dequantize(one.tensor) - weight) * stats.importance).sum())

    plain = error(knobs)
    assert error(knobs.searched(stats)) < plain
    for step in range(1, 11):
        knobs.move((dequantize(knobs.tensor) - weight) * stats.importance, 1.0, step)
    assert error(knobs) < plain
    knobs.take_back()
    assert error(knobs) == plain


@pytest.mark.parametrize(("end", "sign"), [(0, -1), (1, 1)])
def test_both_ends_move_apart_from_one_another(end, sign):
    """A slope on the largest weights moves only what they are clipped at, and so does one on the least."""
    weight, knobs = clips(grid_named("q4_1"), shape=(8, 32))
    knobs.move(np.zeros_like(weight), 1.0, 1)
    assert (knobs._ends == 1).all()
    knobs._ends = np.full_like(knobs._ends, 0.5)
    clipped = sign * weight > 0.5 * (sign * weight).max(1, keepdims=True)
    knobs.move(clipped * np.float32(sign), 1.0, 2)
    assert (knobs._ends[end] < 0.5).all() and (knobs._ends[1 - end] == 0.5).all()


def test_no_block_loses_to_minimum_and_maximum(tmp_path, monkeypatch):
    model, found = make_tiny_model(tmp_path / "model", hidden=64, ffn=96), []
    learn = LearnClips.__call__

    def watched(self, block, names, kit):
        student, losses = kit.run.student, []

        def loss(tensors):
            for name, value in block.tensors.items():
                value = dequantize(tensors[name]) if name in tensors else value
                student.put(name, kit.orders.to_source(name, value), learns=False)
            return student.loss(judges_of(student.sequences))

        plain = {name: rtn(name, block.tensors[name], one.tensor.grid, one.tensor.axis) for name, one in block.rounded.items()}
        losses.append(loss(plain))
        after = learn(self, block, names, kit)
        losses.append(loss({name: one.tensor for name, one in after.rounded.items()}))
        found.append(losses)
        return after

    monkeypatch.setattr(LearnClips, "__call__", watched)
    source = open_checkpoint(model)
    config = config_of("omniquant", bits=4, group_size=32, calibration_tokens=TOKENS)
    store = quantize_checkpoint(source, tmp_path / "s", config, TARGETS["onnxruntime"])
    assert len(found) == 2 and all(after < before for before, after in found)
    blocks = store.header["blocks"]
    assert blocks["steps"] == METHODS["omniquant"].block_steps
    assert sum(blocks["after"]) < sum(blocks["before"])  # not by the search alone


@pytest.mark.parametrize(("target", "options"), [("llama.cpp", {"grid": "q4_1"}), ("onnxruntime", {"bits": 3})])
def test_a_file_verifies(tmp_path, target, options):
    source = open_checkpoint(make_tiny_model(tmp_path / "model", hidden=64, ffn=96))
    config = config_of("omniquant", block_steps=3, calibration_tokens=TOKENS, **options)
    store = quantize_checkpoint(source, tmp_path / "s", config, TARGETS[target])
    assert store.header["blocks"]["steps"] == 3
    checks = verify(writer_of(target).write(store, tmp_path / "file"), source, store)
    assert checks and all(check.ok for check in checks)


def test_what_lies_on_its_grid_is_not_clipped(tmp_path):
    model = make_tiny_model(tmp_path / "model", hidden=64, ffn=96)
    weights, name = load_file(model / "model.safetensors"), "model.layers.1.mlp.down_proj.weight"
    held = rtn(name, weights[name].astype(np.float32), grid_named("q4_0"), Axis.PER_OC)
    weights[name] = dequantize(replace(held, codes=held.codes.clip(4, 12)))  # minimum and maximum say another scale
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    source = open_checkpoint(model)
    config = config_of("omniquant", grid="q4_0", block_steps=3, calibration_tokens=TOKENS)
    store = quantize_checkpoint(source, tmp_path / "s", config, TARGETS["llama.cpp"])
    assert [record.name for record in store.records.values() if record.rounder == "exact"] == [name]
    np.testing.assert_array_equal(store.weight(name).dense(), source.read(name))


def test_no_steps_are_refused_before_any_data():
    with pytest.raises(ConfigError, match=r"method='omniquant': learns, which takes steps; give block_steps=30"):
        build_plan(SPECS, QuantizeConfig("omniquant"), TARGETS["llama.cpp"])
