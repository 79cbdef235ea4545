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
from quantize.fold import Basis, Fold
from quantize.methods import METHODS
from quantize.rounding.rtn import rtn
from quantize.steps import channels, learn_clips
from quantize.steps.channels import Channels, Site
from quantize.steps.clips import Clips
from quantize.steps.descent import judges_of, put_stored
from quantize.steps.learn_clips import LearnClips
from quantize.transforms.places import Place
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


def site(*names):
    """Channels that these read, as a norm's."""
    return Site(Place(names, lambda factor: Fold({}, dict.fromkeys(names, Basis.scaled(factor)))), ())


@pytest.mark.parametrize("name", ["int", "q4_1", "q4_0"])
def test_channels_follow_the_slope_of_all_that_read_them(name):
    """Down the slope of a squared error there is less of it than with ends alone, and both linears have the same scales."""
    stats, errors = stats_of(512), dict[bool, float]()
    for scaled in (False, True):
        pairs = [(weight_of((128, 512), seed), one) for seed, one in enumerate(("a", "b"))]
        knobs = {one: Clips(rtn(one, weight, grid_named(name), Axis.PER_OC), weight) for weight, one in pairs}
        shared = Channels(site("a", "b"), knobs, np.ones(512, np.float32))
        for step in range(1, 31):
            for weight, one in pairs:
                knobs[one].move((knobs[one].weight - weight) * stats.importance, 1.0, step)
            if scaled:
                shared.move(1.0)
        errors[scaled] = sum(float((np.square(knobs[one].weight - weight) * stats.importance).sum()) for weight, one in pairs)
    assert errors[True] < 0.98 * errors[False]
    factor = shared.fold.read["a"].factor
    assert 0.8 < factor.min() < 0.95 and 1.05 < factor.max() < 1.2
    for weight, one in pairs:
        folded = Clips(knobs[one].tensor, weight / factor, knobs[one].ends).tensor
        assert np.array_equal(folded.codes, knobs[one].tensor.codes)
    shared.take_back()
    assert (shared.fold.read["a"].factor == 1).all()


def test_a_group_of_one_sign_has_two_ends_where_the_minimum_is_free():
    """Nothing clipped is minimum and maximum there too; clipped, both ends move inwards. An int grid's least is 0."""
    weight = np.random.default_rng(0).uniform(1, 2, (8, 64)).astype(np.float32)
    for name, ends in (("q4_1", (1.25, 1.75)), ("int", (0.9, 0.9))):
        plain = rtn("w", weight, grid_named(name), Axis.PER_OC)
        knobs = Clips(plain, weight)
        assert np.array_equal(knobs.tensor.codes, plain.codes)
        half = dequantize(Clips(plain, weight, np.full_like(knobs.ends, 0.5)).tensor)
        assert (half.min(), half.max()) == pytest.approx(ends, abs=0.1)


def test_no_block_loses_to_minimum_and_maximum(tmp_path, monkeypatch):
    model, found = make_tiny_model(tmp_path / "model", hidden=64, ffn=96), []
    learn = LearnClips.__call__

    def watched(self, block, names, kit):
        def loss(block):
            put_stored(block, kit.run.student, kit)
            return kit.run.student.loss(judges_of(kit.run.student.sequences))

        plain = {name: rtn(name, block.tensors[name], one.tensor.grid, one.tensor.axis) for name, one in block.rounded.items()}
        rounded = {name: one._replace(tensor=plain[name]) for name, one in block.rounded.items()}
        before, after = loss(replace(block, rounded=rounded)), learn(self, block, names, kit)
        found.append((before, kit.run.student.loss(judges_of(kit.run.student.sequences)), loss(after), after.report))
        return after

    monkeypatch.setattr(LearnClips, "__call__", watched)
    source = open_checkpoint(model)
    config = config_of("omniquant", bits=4, group_size=32, calibration_tokens=TOKENS)
    store = quantize_checkpoint(source, tmp_path / "s", config, TARGETS["onnxruntime"])
    assert len(found) == 2 and all(after < before for before, after, _, _ in found)
    assert all(left == pytest.approx(stored, rel=1e-6) for _, left, stored, _ in found)
    assert all(report["learned"][1] == pytest.approx(stored, rel=1e-3) for *_, stored, report in found)
    blocks = store.header["blocks"]
    assert blocks["steps"] == METHODS["omniquant"].block_steps
    assert sum(blocks["after"]) < sum(blocks["before"])  # not by the search alone


def test_scales_are_kept_where_they_lose_less(tmp_path, monkeypatch):
    """The first block sees the same either way. Where scales lose, what comes out is as if there were none."""
    source = open_checkpoint(make_tiny_model(tmp_path / "model", hidden=64, ffn=96))
    config = config_of("omniquant", bits=3, group_size=32, calibration_tokens=TOKENS, block_steps=10)

    def made(name):
        return quantize_checkpoint(source, tmp_path / name, config, TARGETS["onnxruntime"])

    scaled = made("scaled")
    monkeypatch.setattr(channels, "RATE", 1000.0)  # of no use to anybody
    monkeypatch.setattr(channels, "best_fold", lambda *_: None)
    monkeypatch.setattr(Channels, "take_back", lambda self: None)
    lost = made("lost")
    monkeypatch.setattr(learn_clips, "sites_of", lambda *_: [])
    without = made("without")
    assert scaled.header["transforms"]["channel-scales"][0] == "1"
    assert scaled.header["blocks"]["after"][0] < without.header["blocks"]["after"][0]
    assert lost.header == without.header and lost.header["transforms"] == {"channel-scales": "00"}


@pytest.mark.parametrize(("target", "options"), [("llama.cpp", {"grid": "q4_1"}), ("onnxruntime", {"bits": 3})])
def test_a_file_verifies(tmp_path, target, options):
    source = open_checkpoint(make_tiny_model(tmp_path / "model", hidden=64, ffn=96))
    config = config_of("omniquant", block_steps=3, calibration_tokens=TOKENS, **options)
    store = quantize_checkpoint(source, tmp_path / "s", config, TARGETS[target])
    assert store.header["blocks"]["steps"] == 3
    assert "1" in store.header["transforms"]["channel-scales"]
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
