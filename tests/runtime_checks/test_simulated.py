"""Rounded inputs that are simulated: what onnxruntime computes, channel by channel by definition, and rules that fit nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.cli.main import main
from exporter.onnx.file import write_onnx
from exporter.targets import TARGETS
from quantize import GridSpec, QuantizeConfig, open_checkpoint, quantize_checkpoint
from quantize.activations import ACTIVATIONS, Activation
from quantize.activations.rules import Rules
from quantize.errors import ConfigError
from quantize.model_config import EMBEDDING, HEAD
from quantize.source.fake_quant import fake_quantize
from quantize.turn import Rotation
from runtime_checks.measure.evaluate import EvalOptions, evaluate
from runtime_checks.reference.onnx_turn import OnnxTurn
from runtime_checks.runtimes.decoded import decoded_runner
from runtime_checks.runtimes.exported import exported_runner, open_exported
from runtime_checks.runtimes.reading import CodedPart, Reading
from runtime_checks.runtimes.simulated import roundings, simulated_runner
from tests.cases import config_of
from tests.runtime_checks.made import Made, make
from tests.tiny import TEXT, make_tiny_model

TOKENS = (np.arange(48) * 7 % 300).astype(np.int64)
NEAR = 0.25  # of what rounding moves: sums in another order now and then lead to another code; blocks of 32 for 64 give 1.2
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module", params=[16, 32, 64])
def nbits(request, tmp_path_factory) -> Made:
    """MatMulNBits everywhere but at the head, which is not simulated."""
    folder = tmp_path_factory.mktemp("simulated")
    source = open_checkpoint(make_tiny_model(folder / "model"))
    config = QuantizeConfig("rtn-oc", GridSpec(group_size=request.param), embedding="source")
    store = quantize_checkpoint(source, folder / "store", config, TARGETS["onnxruntime"])
    return Made(source, store, write_onnx(store, folder / "onnx"))


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp("gguf"), "llama.cpp")


def logits(made: Made, text: str) -> np.ndarray:
    return simulated_runner(made.file, made.source, Rules.parse(text)).logits(TOKENS)


def test_what_a_file_does_is_what_onnxruntime_computes(nbits):
    found = exported_runner(nbits.file, 512).logits(TOKENS)
    simulated, exact = logits(nbits, "file"), decoded_runner(nbits.file, nbits.source).logits(TOKENS)
    off, moved = np.abs(simulated - found).mean(), np.abs(exact - found).mean()
    assert off < NEAR * moved


def test_static_scales_are_those_of_the_file(tmp_path):
    """In words and by ``file``; onnxruntime multiplies the same integers."""
    source = open_checkpoint(make_tiny_model(tmp_path / "model"))
    config = config_of("rtn-oc", calibration_tokens=512, max_slowdown=1.0, embedding="source")
    store = quantize_checkpoint(source, tmp_path / "store", config, TARGETS["onnxruntime-w8a8"])
    made = Made(source, store, write_onnx(store, tmp_path / "onnx"))
    found, simulated = exported_runner(made.file, 512).logits(TOKENS), logits(made, "file")
    assert np.abs(simulated - found).mean() < NEAR * np.abs(decoded_runner(made.file, source).logits(TOKENS) - found).mean()
    assert np.array_equal(simulated, logits(made, "a8-tensor"))
    record, x = store.records[f"{DOWN}.weight"], SAMPLE[0]
    rounding = roundings(made.file, source.config, Rules.parse("a8-tensor"))[DOWN]
    assert np.array_equal(rounding(x), record.activation.round(x))
    with pytest.raises(ConfigError, match="the file has no scale for its input, which a4-tensor needs; a4-token finds its own"):
        roundings(made.file, source.config, Rules.parse("a4-tensor"))


def test_blocks_of_32_are_those_of_groups_of_32(nbits):
    group = nbits.store.records[f"{DOWN}.weight"].grid.group_size
    assert np.array_equal(logits(nbits, "file"), logits(nbits, "a8-block32")) == (group == 32)


@pytest.mark.parametrize("word", [name for name, grid in ACTIVATIONS.items() if not grid.static])
def test_fewer_bits_are_further_away(gguf, word):
    exact = decoded_runner(gguf.file, gguf.source).logits(TOKENS)
    errors = [np.square(logits(gguf, f"a{bits}-{word.partition('-')[2]}") - exact).mean() for bits in (4, 6, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0


def test_the_first_pattern_that_matches_says_it(gguf):
    held = Rules.parse("a8-token,*.1.*.down_proj=a4-token,*.down_proj=a6-token")
    assert held.word(f"{DOWN}.weight") == "a4-token" and held.word(DOWN.replace("1", "0")) == "a6-token"
    assert held.word("model.layers.1.mlp.up_proj.weight") == "a8-token"
    assert Rules.parse("*.down_proj=a4-token").word("model.layers.1.mlp.up_proj.weight") is None
    only = roundings(gguf.file, gguf.source.config, Rules.parse("*.down_proj=a4-token"))
    assert set(only) == {DOWN, DOWN.replace("1", "0")}
    everywhere = roundings(gguf.file, gguf.source.config, Rules.parse("a4-token"))
    assert len(everywhere) == 14 and not {HEAD.removesuffix(".weight"), EMBEDDING.removesuffix(".weight")} & everywhere.keys()


SAMPLE = (np.random.default_rng(0).standard_normal((2, 5, 64)) * np.linspace(0.1, 30, 64)).astype(np.float32)
LAST = np.arange(60, 64)


def test_float_channels_keep_their_bits_and_are_in_no_range():
    held, found = Activation("a4-token"), Reading(floats=(LAST,)).round(SAMPLE, Activation("a4-token").round)
    assert np.array_equal(found[..., LAST], SAMPLE[..., LAST])
    assert np.array_equal(found[..., :60], held.round(SAMPLE[..., :60]))


def test_each_part_is_rounded_by_itself():
    channels = [np.arange(1, 60, 2), np.arange(0, 60, 2)]
    parts = tuple(CodedPart(each) for each in channels)
    held = Activation("a4-token")
    found = Reading(parts, floats=(LAST,)).round(SAMPLE, held.round)
    for each in channels:
        assert np.array_equal(found[..., each], held.round(SAMPLE[..., each]))
    assert np.array_equal(found[..., LAST], SAMPLE[..., LAST])


def test_a_turned_input_is_rounded_turned():
    turn = Rotation(32, 5)
    node = OnnxTurn("n", turn.signs(64), turn.left, turn.right)
    np.testing.assert_allclose(node.apply(SAMPLE[0]), turn.apply(SAMPLE[0]), atol=1e-4)
    held = Activation("a4-token")
    expected = turn.back(held.round(turn.apply(SAMPLE)))
    np.testing.assert_allclose(Reading(turn=node).round(SAMPLE, held.round), expected, atol=1e-4)


def test_a_turned_file_rounds_turned_inputs(tmp_path):
    source = open_checkpoint(make_tiny_model(tmp_path / "model"))
    store = quantize_checkpoint(source, tmp_path / "store", config_of("higgs", bits=3), TARGETS["onnxruntime+adadim"])
    folder = write_onnx(store, tmp_path / "onnx")
    record = store.records[f"{DOWN}.weight"]
    rounding = roundings(folder, source.config, Rules.parse("a4-token"))[DOWN]
    x = np.random.default_rng(0).standard_normal((7, record.shape[1])).astype(np.float32)
    expected = record.turn.back(Activation("a4-token").round(record.turn.apply(x)))
    np.testing.assert_allclose(rounding(x), expected, atol=1e-4)


def test_columns_of_a_file_that_are_floats(tmp_path):
    source = open_checkpoint(make_tiny_model(tmp_path / "model"))
    config = config_of("rtn-oc", float_columns=4, calibration_tokens=512)
    store = quantize_checkpoint(source, tmp_path / "store", config, TARGETS["onnxruntime"])
    weights = open_exported(write_onnx(store, tmp_path / "onnx")).weights(source.config)
    (floats,) = weights.reading(f"{DOWN}.weight").floats
    assert np.array_equal(floats, store.weight(f"{DOWN}.weight").parts[1].reads)


def clips_of(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    clips = {name: {"low": -1.5, "high": 2.25} for name in names}
    (folder / "activation_clips.json").write_text(json.dumps({"format": "adadim activation clips 1", "bits": 4, "clips": clips}))
    return folder


def test_learned_clips(gguf, tmp_path):
    """What `adadim finetune` trains with, in torch."""
    folder = clips_of(tmp_path / "clips", [f"{DOWN}.weight"])
    rounding = roundings(gguf.file, gguf.source.config, Rules.parse(f"*.1.*.down_proj=clips:{folder}"))[DOWN]
    expected = fake_quantize(torch.from_numpy(SAMPLE), torch.tensor([-1.5, 2.25]), 4)
    np.testing.assert_allclose(rounding(SAMPLE), expected.numpy(), atol=1e-6)
    with pytest.raises(
        ConfigError, match=rf"it has none for model\.layers\.0\.self_attn\.q_proj\.weight, but for {DOWN}\.weight"
    ):
        roundings(gguf.file, gguf.source.config, Rules.parse(f"clips:{folder}"))
    with pytest.raises(ConfigError, match=r"activation_clips\.json"):
        roundings(gguf.file, gguf.source.config, Rules.parse(f"clips:{tmp_path}"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clips:", "'clips:' is none of"),
        ("a5-token", "activations=.*a5-token.*: 'a5-token' is none of a8-block32, "),
        ("", "'' is none of"),
        ("a8-token,a4-token", "a8-token and a4-token are both for all"),
        ("*.down_proj=", "'' is none of"),
    ],
)
def test_words_that_mean_nothing(text, told):
    with pytest.raises(ConfigError, match=told):
        Rules.parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("*.dwon_proj=a4-token", r"pattern '\*.dwon_proj' matches no linear of a decoder block, as model.layers.1.mlp.down_proj"),
        ("lm_head=a4-token", "matches no linear"),
        ("a8-tensor", r"q_proj.weight: the file has no scale for its input, which a8-tensor needs; a8-token finds its own"),
        ("file", r"file.gguf: model.layers.0.self_attn.q_proj.weight: what the file does to its input is not known here"),
    ],
)
def test_rules_that_do_not_fit_the_file(gguf, text, told):
    with pytest.raises(ConfigError, match=told):
        roundings(gguf.file, gguf.source.config, Rules.parse(text))


def test_a_runtime_is_told_nothing():
    with pytest.raises(ConfigError, match=r"activations='a8-token': is simulated .* give weights_only=True too"):
        EvalOptions(activations=Rules.parse("a8-token"))


def test_the_result_says_that_it_is_simulated(gguf, tmp_path, capsys):
    out, text = tmp_path / "out.json", tmp_path / "text.txt"
    text.write_text(TEXT)
    line = ["eval", str(gguf.file), "--source", str(gguf.source.path), "--text", str(text), "--context", "64", "--chunks", "1"]
    assert main([*line, "--weights-only", "--activations", "a4-token", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["simulated"] == "a4-token" and report["runtime"] == "torch (decoded)"
    told = capsys.readouterr().out.splitlines()
    assert any(row.split() == ["simulated", "a4-token"] for row in told)
    plain = evaluate(gguf.file, gguf.source, TEXT, EvalOptions(64, 1, weights_only=True))
    assert "simulated" not in plain and plain["kld"] < report["kld"]
    assert main([*line, "--activations", "a4-token", "--quiet"]) == 2
    assert "--activations a4-token: is simulated" in capsys.readouterr().err
