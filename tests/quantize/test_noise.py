"""Slopes by noise: exact noise, the divergence of the whole model with it, a closed form where there is one, and their file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from exporter.cli.main import main
from exporter.targets import TARGETS
from quantize.blocks import dequantize
from quantize.checkpoint import open_checkpoint
from quantize.errors import CalibrationError, CheckpointError
from quantize.model_config import EMBEDDING, HEAD
from quantize.planning.sensitivity import NoiseJson, measure_sensitivity, read_sensitivity
from quantize.rounding.rtn import rtn
from quantize.source import measure_slopes, named, noise
from quantize.source.noise import Slope, fit_slope, noisy
from quantize.statistics.calibration import RANDOM
from quantize.statistics.measured import Measured
from quantize.types import Axis, InputStats
from tests.cases import config_of
from tests.tiny import make_tiny_model

TOKENS = np.random.default_rng(0).integers(3, 320, (6, 48))  # more than go through the model together
CONFIG = config_of(calibration=RANDOM, calibration_tokens=1024)
Q = "model.layers.1.self_attn.q_proj.weight"
CLOSE = 1e-3  # of a divergence of 1e-2 nats, by float32 logits
LEVEL = 2.0**-6


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("noise") / "model", tied=False, ffn=256))


@pytest.mark.parametrize("energy", [2.0**-14, 2.0**-6, 1.0])
def test_noise_has_exactly_its_energy(energy):
    weight = np.random.default_rng(3).standard_normal((300, 70), np.float32) ** 3
    error = noisy(weight, energy, np.random.default_rng(4)).astype(np.float64) - weight
    assert np.square(error).sum() / np.square(weight, dtype=np.float64).sum() == pytest.approx(energy, rel=1e-5)
    assert np.array_equal(noisy(weight * 0, energy, np.random.default_rng(4)), weight * 0)


def divergence(source, name, weight) -> float:
    """Of the whole model with another weight in it, in float64, over the second halves."""
    found = []
    for changed in (False, True):
        model = named.named_model(source, TOKENS, paged=False)
        if changed:
            model.put(name, weight, learns=False)
        last = [model.causal.hidden(torch.from_numpy(row)[None])[0, 24:] for row in TOKENS]
        found.append(torch.cat([model.causal.logits(part) for part in last]).double().log_softmax(-1))
    return float((found[0].exp() * (found[0] - found[1])).sum(-1).mean())


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
@torch.no_grad()
def test_a_slope_is_what_the_whole_model_loses(source, kind, kept):
    """Of a family, of a template in the memory of one block, and where blocks give tuples or weights lie transposed."""
    if kind != "llama":
        source = kept.gguf(kind)
    found = measure_slopes(source, TOKENS, 5, [LEVEL])
    names = list(found)
    assert {EMBEDDING} <= set(names) and len(names) >= 2 * 4
    for number in (0, len(names) // 2 - 1, len(names) // 2, len(names) - 2, len(names) - 1):
        name = names[number]
        weight = noisy(source.read(name), LEVEL, np.random.default_rng((5, number, 0)))
        assert found[name].value * LEVEL == pytest.approx(divergence(source, name, weight), rel=CLOSE), name
        assert found[name].value > 1e-3


def test_what_comes_before_is_not_computed_again(source, monkeypatch):
    calls = [0, 0]

    def counted(*args):
        model = named.named_model(*args)
        for index, block in enumerate(model.causal.blocks):
            block.mlp.register_forward_pre_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
        return model

    monkeypatch.setattr(noise, "named_model", counted)
    measure_slopes(source, TOKENS, 0, [LEVEL / 2, LEVEL])
    once, steps, tables = 2, 1, 2 * 2  # as it is, two batches; to the next block; both at both levels
    first, last = (once * (1 + steps + 2 * own + tables) for own in (7, 14))
    assert calls == [first, last + once]  # the second is resumed once to see that it can be


def test_of_a_quadratic_model_slopes_are_those_of_the_closed_form(source, tmp_path):
    """A head so small that every token is as likely: the divergence of dz is half its variance, whatever else there is."""
    folder = make_tiny_model(tmp_path / "model", tied=False)
    weights = load_file(folder / "model.safetensors")
    weights[HEAD] = weights[HEAD] * np.float32(0.01)
    save_file(weights, folder / "model.safetensors")
    quiet = open_checkpoint(folder)
    found = measure_slopes(quiet, TOKENS, 0, [LEVEL / 4, LEVEL / 2, LEVEL])[HEAD]
    model = named.named_model(quiet, TOKENS)
    with torch.no_grad():
        x = torch.cat([model.causal.hidden(torch.from_numpy(row)[None])[0, 24:] for row in TOKENS])
    head = weights[HEAD]
    per_weight = float(np.square(head, dtype=np.float64).mean())
    expected = 0.5 * per_weight * float(x.square().sum(-1).mean()) * (len(head) - 1) / len(head)
    assert found.value == pytest.approx(expected, rel=0.02)  # of 20,480 draws a level
    assert found.straight == 3


def test_a_line_through_the_origin():
    levels = (0.25, 0.5, 1.0)
    assert fit_slope(levels, (0.75, 1.5, 3.0)) == Slope(3.0, False, 3)
    assert fit_slope(levels, (1.0, 1.0, 3.0)).value == pytest.approx((0.25 + 0.5 + 3.0) / (0.0625 + 0.25 + 1.0))
    assert fit_slope(levels, (0.75, 1.5, 30.0)) == Slope(3.0, False, 2)  # where it is straight
    assert fit_slope(levels, (0.75, 0.1, 3.0)) == Slope(3.0, False, 1)
    assert fit_slope(levels, (0.75, np.inf, 3.0)) == Slope(3.0, False, 1)
    assert fit_slope(levels, (-0.75, -1.5, -3.0)) == Slope(0.0, True, 3)


def test_random_tokens_need_no_text(tmp_path):
    """Nor a tokenizer; the same seed draws the same."""
    folder = make_tiny_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    mute = open_checkpoint(folder)
    target = TARGETS["onnxruntime"]
    with pytest.raises(CalibrationError, match=r"no tokenizer\.json"):
        measure_sensitivity(Measured(mute), replace(CONFIG, data=replace(CONFIG.data, text="builtin")), target, 1)
    found = measure_sensitivity(Measured(mute), CONFIG, target, 1)
    assert found.calibration["text"] == "random tokens" and found.calibration["tokens"] == 1024
    assert measure_sensitivity(Measured(mute), CONFIG, target, 1).to_json() == found.to_json()
    other = measure_sensitivity(Measured(mute), replace(CONFIG, data=replace(CONFIG.data, seed=1)), target, 1)
    assert other.calibration["sha256"] != found.calibration["sha256"] and other.noise != found.noise
    assert "noise" not in json.loads(measure_sensitivity(Measured(mute), CONFIG, target).to_json())  # gradients of them


def test_an_options_loss_is_the_slope_times_its_relative_error(source, tmp_path):
    target = TARGETS["onnxruntime"]
    found = measure_sensitivity(Measured(source), CONFIG, target, 2)
    (tmp_path / "file.json").write_bytes(found.to_json())
    assert read_sensitivity(tmp_path / "file.json", source, target) == found
    assert set(found.noise.slopes) == set(found.options) and {Q, EMBEDDING, HEAD} <= set(found.options)
    assert found.noise.levels == (LEVEL / 2, LEVEL)
    weight = source.read(Q)
    alike = InputStats(np.ones(weight.shape[1], np.float32), 1, np.ones(weight.shape[0], np.float32))
    assert {one.axis for one in found.options[Q]} == {Axis.PER_OC}
    for option in found.options[Q]:
        error = dequantize(rtn(Q, weight, option.grid, option.axis, alike)) - weight
        expected = found.noise.slopes[Q] * np.square(error).sum() / np.square(weight).sum()
        assert option.loss[option.axis] == pytest.approx(expected, rel=1e-4)


def test_what_is_to_know_of_single_tensors():
    assert NoiseJson((0.5, 1.0), {}).notes() == []
    below, bent = NoiseJson((0.5, 1.0), {}, ("a",), ("b", "c", "d", "e")).notes()
    assert below.startswith("a: ") and "counts as free" in below
    assert bent.startswith("b, c, d and 1 more: ") and "first levels" in bent


def test_a_model_that_cannot_be_resumed_is_refused(source, monkeypatch):
    """Its last block takes something else from the first than what lies between."""

    def crossed(*args):
        model, held = named.named_model(*args), []
        first, last = model.causal.blocks
        first.register_forward_hook(lambda _module, _args, out: held.append(out))
        last.register_forward_hook(lambda _module, _args, out: out + held.pop())
        return model

    monkeypatch.setattr(noise, "named_model", crossed)
    with pytest.raises(CheckpointError, match=r"resumed at decoder block 1, .* measure by='curvature'"):
        measure_slopes(source, TOKENS, 0, [LEVEL])


def test_tokens_of_another_model_are_refused(source):
    with pytest.raises(CalibrationError, match="token 320 has no row in the embedding of 320"):
        measure_slopes(source, TOKENS * 0 + 320, 0, [LEVEL])


def test_a_file_by_noise_spends_a_budget(source, tmp_path, capsys):
    file = tmp_path / "noise.json"
    command = ["sensitivity", str(source.path), "--by", "noise", "--out", str(file), "--quiet", "--target", "onnxruntime"]
    assert main([*command, "--calibration", RANDOM, "--noise-levels", "1", "--calibration-tokens", "512"]) == 0
    sized = ["quantize", str(source.path), "--sensitivity", str(file), "--target", "onnxruntime", "--dry-run"]
    assert main([*sized, "--target-bpw", "6"]) == 0
    assert "predicted" in capsys.readouterr().out
    assert main([*command[:2], "--noise-levels", "2", "--out", str(tmp_path / "o")]) == 2
    assert "--noise-levels 2: is for --by noise" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
