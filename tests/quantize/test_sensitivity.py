"""Predicted losses: what they are made of, that a sample of the rows tells them, and the file that keeps them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exporter.targets import TARGETS
from quantize.architecture.families import LINEARS
from quantize.blocks import dequantize
from quantize.checkpoint import open_checkpoint
from quantize.config import QuantizeConfig
from quantize.errors import ConfigError
from quantize.loss import output_loss
from quantize.methods import ROUNDERS
from quantize.model_config import EMBEDDING, HEAD
from quantize.planning import sensitivity
from quantize.planning.sensitivity import measure_sensitivity, options_of, read_sensitivity
from quantize.statistics.calibration import calibration_data
from quantize.statistics.measured import Measured
from quantize.types import Axis, InputStats
from tests.cases import config_of, weight_of
from tests.tiny import make_tiny_model

CONFIG = config_of(calibration_tokens=512)
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("sensitivity") / "model", tied=False, ffn=256))


def losses(found, name):
    return {(option.grid.name, option.grid.bits, option.axis): option.loss[option.axis] for option in found.options[name]}


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
    from quantize.source import measure_curvature, walk_blocks

    found = losses(measure_sensitivity(Measured(source), CONFIG, TARGETS["llama.cpp"]), Q)
    tokens, _ = calibration_data(CONFIG.data, source)
    runs = walk_blocks(source, tokens, measure_curvature(source, tokens, CONFIG.data.seed), 0)
    stats = next(run.stats[Q] for run in runs if Q in run.stats)
    for (name, bits, axis), loss in found.items():
        grid = sensitivity.make_grid(name, bits, 32)
        rounded = dequantize(ROUNDERS["rtn"](Q, source.read(Q), grid, axis, stats))
        assert loss == pytest.approx(output_loss(source.read(Q), rounded, stats), rel=1e-6)


def test_a_sample_of_the_rows_tells_nearly_the_same(source, monkeypatch):
    whole = measure_sensitivity(Measured(source), CONFIG, TARGETS["llama.cpp"])
    for key, value in (("RUN", 32), ("SAMPLE", 32 * 64), ("TABLE_ROWS", 96)):
        monkeypatch.setattr(sensitivity, key, value)
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
    options = options_of(source.specs[Q], TARGETS["onnxruntime+adadim"])
    assert {option.grid.bits for option in options} == {2, 3, 4, 8}


def test_a_source_larger_than_memory_is_refused_before_any_work(source, monkeypatch):
    monkeypatch.setattr("quantize.workers.physical_memory", lambda: 4 * sum(spec.size for spec in source.specs.values()))
    with pytest.raises(ConfigError, match=r"takes about 0 GiB of memory, and this machine has 0; measure on a larger one"):
        measure_sensitivity(Measured(source), QuantizeConfig(), TARGETS["llama.cpp"])


def test_fewer_rows_stand_for_all():
    weight = weight_of((512, 1024))
    stats = InputStats(np.ones(1024, np.float32), 9, np.random.default_rng(0).uniform(0.5, 2, 512).astype(np.float32))
    fewer, known = sensitivity._fewer(weight, stats)
    assert np.array_equal(fewer, weight[::2])
    assert known.row_weight.sum() == pytest.approx(stats.row_weight.sum(), rel=1e-5)
    noise = np.random.default_rng(1).standard_normal(weight.shape).astype(np.float32)
    whole, part = output_loss(weight, weight + noise, stats), output_loss(fewer, fewer + noise[::2], known)
    assert part == pytest.approx(whole, rel=0.02)
