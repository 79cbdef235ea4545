"""onnxruntime-genai on the folders as they are: right ones pass, a wrong genai_config.json is seen before genai believes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from quantize import open_checkpoint
from quantize.errors import FileFormatError
from runtime_checks.checks.genai_check import TIE, check_genai, check_genai_config
from runtime_checks.runtimes.onnx_runner import OnnxRunner
from tests.runtime_checks.made import FORMS, Made, make, make_from
from tests.tiny import make_tiny_model

PROMPT = np.arange(40, 52)
COUNT = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp("genai"), "onnx-oc")


def edited(made: Made, out: Path, **changes: object) -> Path:
    """``changes``: new values of keys, wherever they are in genai_config.json."""
    path = Path(shutil.copytree(made.file, out)) / "genai_config.json"

    def replaced(value):
        if not isinstance(value, dict):
            return value
        return {key: changes[key] if key in changes else replaced(item) for key, item in value.items()}

    path.write_text(json.dumps(replaced(json.loads(path.read_text()))))
    return out


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("onnx")])
def test_what_we_write_generates(tmp_path, form):
    item = make(tmp_path, form)
    assert all(check.ok for check in check_genai_config(item.file, item.source.config))
    check = check_genai(item.file, OnnxRunner(item.file), PROMPT, COUNT)
    assert check.ok and check.error < TIE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 5),
        ("num_hidden_layers", 7),
        ("num_hidden_layers", 1),
        ("num_key_value_heads", 4),
        ("head_size", 8),
        ("hidden_size", None),
        ("context_length", 4096),
        ("max_length", 0),
    ],
)
def test_a_wrong_size_is_seen(made, tmp_path, key, value):
    checks = check_genai_config(edited(made, tmp_path / "onnx", **{key: value}), made.source.config)
    assert [check.tensor for check in checks if not check.ok] == [key]


def test_other_tokens_than_onnxruntimes_are_seen(made, tmp_path):
    other = make_from(open_checkpoint(make_tiny_model(tmp_path / "model", seed=1)), tmp_path, "onnx-oc")
    assert not check_genai(made.file, OnnxRunner(other.file), PROMPT, COUNT).ok


def test_genai_may_stop_at_an_end(made, tmp_path):
    """Whether the ends are the source's, the tokenizer's check knows."""
    runner = OnnxRunner(made.file)
    (first,) = runner.greedy(PROMPT, 1)
    assert check_genai(edited(made, tmp_path / "onnx", eos_token_id=first), runner, PROMPT, COUNT).ok


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3}', "{}"])
def test_a_config_that_cannot_be_read(made, tmp_path, text):
    folder = Path(shutil.copytree(made.file, tmp_path / "onnx"))
    (folder / "genai_config.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"genai_config\.json"):
        check_genai_config(folder, made.source.config)


def test_a_folder_that_genai_refuses(made, tmp_path):
    folder = edited(made, tmp_path / "onnx", filename="nothing.onnx")
    with pytest.raises(FileFormatError, match="onnxruntime-genai cannot run it"):
        check_genai(folder, OnnxRunner(made.file), PROMPT, COUNT)
