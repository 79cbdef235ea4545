"""Sources that other tools have quantized: what they stand for is what is read, whatever holds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter.cli.main import main
from quantize.checkpoint import open_checkpoint
from quantize.errors import CheckpointError
from quantize.template.convert import convert
from quantize.template.converter import find_converter
from quantize.template.onnx_convert import convert_onnx
from tests.any_model import make_model
from tests.quantized_folders import KINDS, quantized

SIZES = {"hidden_size": 128, "intermediate_size": 256}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Of rows that llama.cpp leaves in their order."""
    return make_model(tmp_path_factory.mktemp("model") / "model", "qwen2", **SIZES)


def missing(template: Path, meant: dict[str, np.ndarray]) -> list[str]:
    """Names of the matrices of which the template has none that is equal."""
    source = open_checkpoint(template)
    ours = [source.read(name) for name, spec in source.specs.items() if len(spec.shape) == 2]
    return [name for name, value in meant.items() if not any(_equal(one, value) for one in ours)]


def _equal(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and bool(np.abs(left - right).max() <= 1e-6 * np.abs(right).max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_holds_what_they_stand_for(model, tmp_path, kind):
    meant = quantized(model, tmp_path / kind, kind)
    convert(tmp_path / kind, tmp_path / "model.gguf", find_converter(), pre="gpt-2")
    assert len(meant) == 14 and not missing(tmp_path / "model.gguf", meant)


def test_where_it_does_not_the_way_is_named(model, tmp_path):
    quantized(model, tmp_path / "gptq", "gptq")
    with pytest.raises(
        CheckpointError, match=r"transformers does not dequantize it \(.+\); .*adadim convert DIR --out MODEL.gguf"
    ):
        convert_onnx(tmp_path / "gptq", tmp_path / "onnx")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["gptq"]


def test_run_takes_one(model, tmp_path, capsys):
    """A family that is known by name, too; torch is not asked, which would run the codes. An ONNX folder, which transformers
    dequantizes, holds what they stand for as well."""
    meant = quantized(model, tmp_path / "fp8", "fp8")
    out = tmp_path / "out"
    command = ["run", str(tmp_path / "fp8"), "--out", str(out), "--tokenizer-pre", "gpt-2", "--effort", "fast", "--quiet"]
    assert main([*command, "--calibration-tokens", "512"]) == 0
    told = capsys.readouterr().out
    assert told.count("checks hold") == 2 and "NOT ok" not in told
    assert not missing(out / "source.onnx", meant)
