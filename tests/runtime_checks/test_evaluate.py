"""``evaluate`` against a plain computation with transformers, and in every runtime."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.onnx.file import write_onnx
from quantize import open_checkpoint
from quantize.errors import CalibrationError, ConfigError, FileFormatError
from quantize.llama_cpp.model import BATCH_ROWS
from runtime_checks.measure.evaluate import EvalOptions, evaluate
from runtime_checks.runtimes.exported import exported_runner, open_exported
from runtime_checks.runtimes.isolated import source_runner
from tests.runtime_checks.made import FORMS, Made, make
from tests.tiny import TEXT, make_tiny_model

CONTEXT, CHUNKS = 64, 4
OPTIONS = EvalOptions(CONTEXT, CHUNKS)
WEIGHTS_ONLY = EvalOptions(CONTEXT, CHUNKS, weights_only=True)
AGREE = 0.02  # relative, of perplexity and KL divergence
ACTIVATIONS = 0.008  # nats that 8-bit activations may add


@pytest.fixture(scope="module", params=FORMS)
def made(request, tmp_path_factory) -> tuple[str, Made, dict[str, float]]:
    item = make(tmp_path_factory.mktemp("eval"), request.param)
    return request.param, item, plain_scores(item)


def plain_scores(item: Made) -> dict[str, float]:
    """The decoded weights put into a second transformers model; everything in torch, at once, in float64."""
    models = [AutoModelForCausalLM.from_pretrained(item.source.path, dtype=torch.float32).eval() for _ in range(2)]
    weights = open_exported(item.file).weights(item.source.config)
    for name, parameter in models[1].named_parameters():
        parameter.data = torch.from_numpy(np.array(weights.part(name).values))
    ids = AutoTokenizer.from_pretrained(item.source.path)(TEXT, return_tensors="pt").input_ids[0]
    rows = ids[: CHUNKS * CONTEXT].view(CHUNKS, CONTEXT)
    half = CONTEXT // 2
    with torch.inference_mode():
        p, q = (torch.log_softmax(model(rows).logits[:, half - 1 : -1].double(), -1) for model in models)
    labels = rows[:, half:, None]
    kl = (p.exp() * (p - q)).sum(-1)
    return {
        "ppl": math.exp(-q.gather(-1, labels).mean()),
        "source_ppl": math.exp(-p.gather(-1, labels).mean()),
        "kld": kl.mean().item(),
        "kld_p99": float(np.percentile(kl.numpy(), 99)),
        "top1": (p.argmax(-1) == q.argmax(-1)).double().mean().item(),
        "tokens": labels.numel(),
    }


def test_weights_only_equals_a_plain_computation(made):
    _, item, expected = made
    report = evaluate(item.file, item.source, TEXT, WEIGHTS_ONLY)
    assert report["runtime"] == "torch (decoded)"
    assert report["tokens_per_s"] > 0
    for key, value in expected.items():
        assert report[key] == pytest.approx(value, rel=1e-4), key


def test_the_runtime_is_near_its_own_weights(made):
    form, item, expected = made
    if form == "gguf-adadim":
        with pytest.raises(FileFormatError, match=r"blk.0.attn_q.weight_ic and 13 more are stored transposed.*weights_only=True"):
            evaluate(item.file, item.source, TEXT, OPTIONS)
        return
    report = evaluate(item.file, item.source, TEXT, OPTIONS)
    assert report["runtime"].startswith("llama.cpp (xllamacpp " if form == "llama.cpp" else "onnxruntime ")
    assert report["source_ppl"] == pytest.approx(expected["source_ppl"], rel=1e-4)
    assert report["kld"] == pytest.approx(expected["kld"], rel=AGREE, abs=ACTIVATIONS)
    assert report["ppl"] == pytest.approx(expected["ppl"], rel=AGREE)
    assert report["tokens"] == CHUNKS * CONTEXT // 2
    on_disk = item.file.parent.rglob("model.onnx*") if item.file.is_dir() else [item.file]
    assert report["bytes"] == sum(file.stat().st_size for file in on_disk)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp("onnx"), "onnx-oc")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (EvalOptions(512), CalibrationError, "the text has .* tokens, but one chunk takes 512"),
        (EvalOptions(1024), ConfigError, "context=1024: .*model holds 512 tokens at most"),
    ],
)
def test_a_text_too_short_or_a_context_too_long(onnx, options, error, message):
    with pytest.raises(error, match=message):
        evaluate(onnx.file, onnx.source, "A short text.", options)


def test_a_context_longer_than_the_exported_one(onnx, tmp_path):
    folder = write_onnx(onnx.store, tmp_path / "onnx", context=48)
    with pytest.raises(ConfigError, match=r"context=64: .*onnx holds 48 tokens at most"):
        evaluate(folder, onnx.source, TEXT, OPTIONS)


def test_the_shortest_context(onnx, tmp_path):
    folder = write_onnx(onnx.store, tmp_path / "onnx", context=8)
    assert evaluate(folder, onnx.source, TEXT, EvalOptions(8, 2))["tokens"] == 8


@pytest.mark.parametrize("options", [{"context": 1}, {"chunks": 0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ConfigError, match="must be at least"):
        EvalOptions(**options)


def test_no_tokenizer(onnx, tmp_path):
    model = Path(shutil.copytree(onnx.source.path, tmp_path / "model"))
    (model / "tokenizer.json").unlink()
    with pytest.raises(CalibrationError, match=r"no tokenizer\.json"):
        evaluate(onnx.file, open_checkpoint(model), TEXT, OPTIONS)


def test_a_source_of_another_vocabulary(onnx, tmp_path):
    other = open_checkpoint(make_tiny_model(tmp_path / "other", vocab=352))
    with pytest.raises(FileFormatError, match=r"embed_tokens.weight is \(320, 64\), the source's is \(352, 64\)"):
        evaluate(onnx.file, other, TEXT, OPTIONS)


def test_logits_of_the_last_tokens_are_the_last_of_all(made):
    """In every runtime, wherever the first that is asked for lies in a batch of llama.cpp's."""
    tokens = (np.arange(BATCH_ROWS + 20) * 7 % 300).astype(np.int64)
    form, item, _ = made
    for runner in (source_runner(item.source, 512), *([] if form == "gguf-adadim" else [exported_runner(item.file, 512)])):
        whole = runner.logits(tokens)
        for skip in (0, 5, BATCH_ROWS - 1, BATCH_ROWS, BATCH_ROWS + 3):
            np.testing.assert_allclose(runner.logits(tokens, skip), whole[skip:], rtol=0, atol=2e-5 * np.abs(whole).max())
        runner.close()
