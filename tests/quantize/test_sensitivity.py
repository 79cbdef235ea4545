"""Predicted losses: what they are made of, that a sample of the rows tells them, and the file that keeps them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from exporter.targets import TARGETS
from quantize.activations.grids import Blocks
from quantize.architecture.families import LINEARS
from quantize.block import Block, Kit
from quantize.blocks import dequantize
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.row_order import RowOrders
from quantize.config import QuantizeConfig
from quantize.errors import ConfigError
from quantize.grids import make_grid
from quantize.loss import activation_loss, output_loss
from quantize.methods import ROUNDERS
from quantize.model_config import EMBEDDING, HEAD
from quantize.planning import option_losses
from quantize.planning.options import options_of, turned_options
from quantize.planning.sensitivity import measure_sensitivity, read_sensitivity
from quantize.statistics.calibration import calibration_data
from quantize.statistics.measured import Measured
from quantize.steps.axis import ChooseAxis
from quantize.steps.columns import FloatColumns
from quantize.steps.round import Round
from quantize.turn import Rotation
from quantize.types import Axis, InputStats, RowOrder, TensorPlan, TensorSpec
from tests.cases import config_of, weight_of
from tests.tiny import make_tiny_model

CONFIG = config_of(calibration_tokens=512)
UNBOUND = replace(CONFIG, max_slowdown=1000.0)  # a turn costs more than a tiny linear
ADADIM, STATIC = TARGETS["onnxruntime+adadim"], TARGETS["onnxruntime-w8a8"]
Q, V, DOWN = (f"model.layers.1.{name}.weight" for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("sensitivity") / "model", tied=False, ffn=256))


def losses(found, name):
    held = (option for option in found.options[name] if not option.float_columns)
    return {(option.grid.name, option.grid.bits, option.axis): option.loss[option.axis] for option in held}


def statistics(source):
    """Of every linear's input, on the text of CONFIG."""
    from quantize.source import measure_curvature, walk_blocks

    tokens, _ = calibration_data(CONFIG.data, source)
    runs = walk_blocks(source, tokens, measure_curvature(source, tokens, CONFIG.data.seed), 0)
    return {name: stats for run in runs for name, stats in run.stats.items()}


def read_back(found, file, source, target):
    """What the file has, which is all of it."""
    file.write_bytes(found.to_json())
    assert read_sensitivity(file, source, target) == found
    return json.loads(found.to_json())


def test_every_tensor_that_may_be_quantized_has_its_options(source):
    found = measure_sensitivity(Measured(source), CONFIG, TARGETS["gguf-adadim"])
    assert set(found.options) == {
        EMBEDDING,
        HEAD,
        *(name for name in source.specs if name.removesuffix(".weight").endswith(LINEARS)),
    }
    assert {option.axis for option in found.options[Q]} == set(Axis)
    assert {option.axis for option in found.options[EMBEDDING]} == {Axis.PER_OC}
    assert "q4_k" in {option.grid.name for option in found.options["model.layers.0.mlp.down_proj.weight"]}
    assert "q4_k" not in {option.grid.name for option in found.options[Q]}
    for name in found.options:
        loss = losses(found, name)
        for axis in {axis for _, _, axis in loss}:
            assert 0 < loss["q8_0", 8, axis] < loss["q5_1", 5, axis] < loss["q4_1", 4, axis]


def test_the_loss_is_that_of_rounding_the_tensor(source):
    found = losses(measure_sensitivity(Measured(source), CONFIG, TARGETS["llama.cpp"]), Q)
    stats = statistics(source)[Q]
    for (name, bits, axis), loss in found.items():
        grid = make_grid(name, bits, 32)
        rounded = dequantize(ROUNDERS["rtn"](Q, source.read(Q), grid, axis, stats))
        assert loss == pytest.approx(output_loss(source.read(Q), rounded, stats), rel=1e-6)


def test_a_sample_of_the_rows_tells_nearly_the_same(source, monkeypatch):
    whole = measure_sensitivity(Measured(source), CONFIG, TARGETS["llama.cpp"])
    for key, value in (("RUN", 32), ("SAMPLE", 32 * 64), ("TABLE_ROWS", 96)):
        monkeypatch.setattr(option_losses, key, value)
    sampled = measure_sensitivity(Measured(source), CONFIG, TARGETS["llama.cpp"])
    assert losses(sampled, Q) != losses(whole, Q)
    for names in ([EMBEDDING], [HEAD], set(whole.options) - {EMBEDDING, HEAD}):
        for key in losses(whole, Q):
            of_all, of_some = (sum(losses(found, name)[key] for name in names) for found in (whole, sampled))
            assert of_some == pytest.approx(of_all, rel=0.25)


def test_the_file_says_all_of_it_and_the_same_inputs_give_the_same(source, tmp_path):
    target = TARGETS["onnxruntime"]
    found = measure_sensitivity(Measured(source), CONFIG, target)
    (tmp_path / "file.json").write_bytes(found.to_json())
    read = read_sensitivity(tmp_path / "file.json", source, target)
    assert read == found
    assert read.calibration["tokens"] == 512
    assert read.source == {"name": "model", "sha256": source.sha256}
    assert measure_sensitivity(Measured(source), CONFIG, target).to_json() == found.to_json()
    assert {option.grid.bits for option in read.options[EMBEDDING]} == {4, 8}
    assert {option.grid.bits for option in read.options[Q]} == {2, 4, 8}  # 3 bits take as many bytes as 4


def test_slow_axes_are_not_measured(source):
    measured = {}
    for bound in (1.0, 1000.0):
        found = measure_sensitivity(Measured(source), replace(CONFIG, max_slowdown=bound), TARGETS["onnxruntime"])
        measured[bound] = {option.axis for option in found.options[Q]}
    assert measured == {1.0: {Axis.PER_OC}, 1000.0: set(Axis)}


def test_three_bits_are_an_option_where_they_save_bytes(source):
    options = options_of(source.specs[Q], ADADIM, 0)
    assert {option.grid.bits for option in options} == {2, 3, 4, 8}


def test_a_source_larger_than_memory_is_refused_before_any_work(source, monkeypatch):
    monkeypatch.setattr("quantize.workers.physical_memory", lambda: 4 * sum(spec.size for spec in source.specs.values()))
    with pytest.raises(ConfigError, match=r"takes about 0 GiB of memory, and this machine has 0; measure on a larger one"):
        measure_sensitivity(Measured(source), QuantizeConfig(), TARGETS["llama.cpp"])


def test_fewer_rows_stand_for_all():
    weight = weight_of((512, 1024))
    stats = InputStats(np.ones(1024, np.float32), 9, np.random.default_rng(0).uniform(0.5, 2, 512).astype(np.float32))
    fewer, known = option_losses._fewer(weight, stats)
    assert np.array_equal(fewer, weight[::2])
    assert known.row_weight.sum() == pytest.approx(stats.row_weight.sum(), rel=1e-5)
    noise = np.random.default_rng(1).standard_normal(weight.shape).astype(np.float32)
    whole, part = output_loss(weight, weight + noise, stats), output_loss(fewer, fewer + noise[::2], known)
    assert part == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize("noise_levels", [0, 2])
def test_levels_of_turned_weights_are_options_where_a_target_turns_inputs(source, noise_levels):
    for target in TARGETS.values():
        if noise_levels and target.activations:
            continue
        found = measure_sensitivity(Measured(source), UNBOUND, target, noise_levels)
        turned = {option for options in found.options.values() for option in map(turned_of, options) if option is not None}
        linears = {key for key, spec in source.specs.items() if len(spec.shape) == 2 and key not in (EMBEDDING, HEAD)}
        own = {(key, grid, source.specs[key].shape[1]) for key in linears for grid in ("lm2", "lm3", "lm4", "hg2", "hg3")}
        assert turned == (own if target is ADADIM else set())
        if target is ADADIM:
            loss = losses(found, Q)
            assert 0 < loss["lm4", 4, Axis.PER_OC] < loss["hg3", 3, Axis.PER_OC] < loss["lm3", 3, Axis.PER_OC]


def test_no_scale_of_a_turned_option_is_for_more_than_what_is_turned_together():
    for channels, size, group in ((576, 576, 1024), (688, 16, 32), (11008, 256, 256)):
        options = turned_options(TensorSpec(Q, "F32", (64, channels)), ADADIM, 3)
        assert {(one.turn, one.grid.group_size) for one in options} == {(Rotation(size, 3), group)} and len(options) == 5
    assert not turned_options(TensorSpec(Q, "F32", (64, 331)), ADADIM, 3)


def turned_of(option):
    """(tensor, grid, channels that are turned together), or None."""
    return None if option.turn is None else (option.name, option.grid.name, option.turn.size)


def test_the_loss_of_a_turned_option_is_that_of_the_turned_input(source):
    found = measure_sensitivity(Measured(source), UNBOUND, ADADIM)
    known = statistics(source)
    for name in (Q, V, DOWN):
        weight, stats = source.read(name), known[name]
        for option in (one for one in found.options[name] if one.turn is not None):
            moved = option.turn.apply(weight)
            rounded = dequantize(ROUNDERS["rtn"](name, moved, option.grid, option.axis, stats.turned(option.turn)))
            expected = output_loss(weight, option.turn.back(rounded), stats)
            assert option.loss[Axis.PER_OC] == pytest.approx(expected, rel=1e-3)


def test_a_turn_is_read_as_it_was_measured_and_no_other_is(source, tmp_path):
    file, found = tmp_path / "file.json", measure_sensitivity(Measured(source), UNBOUND, ADADIM)
    raw = read_back(found, file, source, ADADIM)
    turned = next(one for one in raw["tensors"] if "turn" in one)
    for name, turn, words in (
        (turned["name"], {"size": 32, "seed": 0}, "64 input channels are turned in runs of 64, not of 32"),
        (EMBEDDING, {"size": 64, "seed": 0}, "an input is turned of linears alone, per output channel"),
        (turned["name"], turned["turn"], "has an option twice"),
    ):
        shape = list(source.specs[name].shape)
        file.write_text(json.dumps(raw | {"tensors": [turned, turned | {"name": name, "shape": shape, "turn": turn}]}))
        with pytest.raises(ConfigError, match=words):
            read_sensitivity(file, source, ADADIM)
    plain = turned | {"grid": "int", "scale_dtype": "float16"}
    file.write_text(json.dumps(raw | {"target": "onnxruntime", "tensors": [plain]}))
    with pytest.raises(ConfigError, match="target onnxruntime turns no input of a linear"):
        read_sensitivity(file, source, TARGETS["onnxruntime"])


def test_a_rounded_input_counts_as_it_is_rounded(source):
    """By a scale that the file has, one an input, or in blocks as long as the weights'."""
    found = measure_sensitivity(Measured(source), CONFIG, STATIC)
    known = statistics(source)
    scales = {}
    for name in (Q, V, DOWN):
        weight, stats, seen = source.read(name), known[name], known[name].inputs.sample
        words = {None if one.activation is None else one.activation.name for one in found.options[name]}
        assert words == {None, "a8-tensor"}
        for option in found.options[name]:
            rounded = dequantize(ROUNDERS["rtn"](name, weight, option.grid, option.axis, stats))
            blocks = partial(Blocks(8, min(option.grid.group_size, weight.shape[1])).round, params={})
            held = blocks(seen) if option.activation is None else option.activation.round(seen)
            more = activation_loss(weight, held, stats)
            assert more > 0
            assert option.loss[Axis.PER_OC] == pytest.approx(output_loss(weight, rounded, stats) + more, rel=1e-4)
        scales[name] = next(one.activation for one in found.options[name] if one.activation is not None)
    assert scales[Q] == scales[V] != scales[DOWN]
    assert not [one for name in (EMBEDDING, HEAD) for one in found.options[name] if one.activation is not None]


def test_a_scale_of_an_input_is_read_as_it_was_measured_and_no_other_is(source, tmp_path):
    file, found = tmp_path / "file.json", measure_sensitivity(Measured(source), CONFIG, STATIC)
    raw = read_back(found, file, source, STATIC)
    static = next(one for one in raw["tensors"] if "activation" in one)
    for changed, words in (
        (static | {"group_size": 32}, "rounds the input of no such weight to a8-tensor"),
        ({key: value for key, value in static.items() if key != "activation"}, "it does not say its input's a8-tensor"),
        (static | {"activation": {"name": "a8-block32"}}, "it does not say its input's a8-tensor"),
        (static | {"activation": {"name": "a8-tensor", "scale": 0.0}}, "are none of a8-tensor"),
        (static | {"name": HEAD, "shape": list(source.specs[HEAD].shape)}, "rounds the input of no such weight"),
    ):
        file.write_text(json.dumps(raw | {"tensors": [changed]}))
        with pytest.raises(ConfigError, match=words):
            read_sensitivity(file, source, STATIC)


def test_noise_in_weights_says_nothing_of_inputs(source):
    with pytest.raises(ConfigError, match="does not say what target onnxruntime-w8a8 loses by rounding what they read"):
        measure_sensitivity(Measured(source), CONFIG, STATIC, 1)


def test_channels_in_float16_are_options_where_a_graph_adds_parts(source):
    for target in TARGETS.values():
        found = measure_sensitivity(Measured(source), UNBOUND, target)
        kept = {(one.name, one.grid.bits, one.float_columns) for options in found.options.values() for one in options}
        columns = {(name, bits, count) for name, bits, count in kept if count}
        adds = target.lacks_parts is None and not target.activations
        linears = set(found.options) - {EMBEDDING, HEAD}
        bits = {bits for name, bits, _ in kept if name == Q and bits < 8}
        assert columns == ({(name, own, count) for name in linears for own in bits for count in (1, 4, 16)} if adds else set())


def test_the_loss_beside_channels_in_float16_is_that_of_both(source):
    """As a store then has them: what float16 keeps absorbs what rounding does to the others."""
    found = measure_sensitivity(Measured(source), UNBOUND, TARGETS["onnxruntime"])
    known = statistics(source)
    for name in (V, DOWN):
        by_count = {}
        for option in (one for one in found.options[name] if one.grid.bits == 2 and one.grid.group_size == 32):
            if option.axis is Axis.PER_OC:
                by_count[option.float_columns] = option.loss[Axis.PER_OC]
        assert by_count[0] > by_count[1] > by_count[4] > by_count[16] > 0
        weight, stats = source.read(name), known[name]
        plan = TensorPlan(name, weight.shape, {Axis.PER_OC: make_grid("int", 2, 32)}, float_columns=4)
        block = Block({name: plan}, {name: weight}, {name: stats}, ((name,),))
        kit = Kit(TARGETS["onnxruntime"], RowOrders(source.config, RowOrder.HF), ROUNDERS, 1.5)
        for step in (FloatColumns(), Round(ROUNDERS["search"]), ChooseAxis()):
            block = step(block, [name], kit)
        stored = block.stored(name, block.rounded[name].tensor).dense()
        assert by_count[4] == pytest.approx(output_loss(weight, stored, stats), rel=0.2)


def test_channels_in_float16_are_read_as_they_were_measured_and_no_others_are(source, tmp_path):
    target = TARGETS["onnxruntime"]
    file, found = tmp_path / "file.json", measure_sensitivity(Measured(source), UNBOUND, target)
    raw = read_back(found, file, source, target)
    kept = next(one for one in raw["tensors"] if one.get("float_columns") == 4)
    for changed, words in (
        (kept | {"float_columns": 64}, "float16 keeps 64 of 64 input channels, which leaves none"),
        (kept | {"name": HEAD, "shape": list(source.specs[HEAD].shape)}, "keeps input channels of linears alone"),
        (kept, "has an option twice"),
    ):
        file.write_text(json.dumps(raw | {"tensors": [kept, changed]}))
        with pytest.raises(ConfigError, match=words):
            read_sensitivity(file, source, target)
