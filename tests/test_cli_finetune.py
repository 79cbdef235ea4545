"""``adadim finetune`` as a person uses it: what it writes is a source of every other command, and what it refuses is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from exporter.cli.main import main
from quantize.finetune import CLIPS, REPORT, read_clips
from tests.any_gguf import make_gguf
from tests.tiny import TEXT, make_tiny_model

FEW = ("--steps", "2", "--context", "32", "--quiet")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("cli") / "model")


def run(*args: object) -> int:
    try:
        return main([str(arg) for arg in args])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_what_it_writes_is_quantized_like_any_checkpoint(model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT * 4)
    asked = ("--activation-bits", "3", "--kurtosis", "1e-3", "--learning-rate", "1e-4", "--seed", "7")
    assert run("finetune", model, "--out", tmp_path / "out", "--text", tmp_path / "text.txt", *asked, *FEW) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for part in ("2 of 32 tokens each", "inputs of 3 bits", "embedding, final norm and head", "mlp.down_proj"):
        assert part in said.out
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert (report["activation_bits"], report["kurtosis"], report["seed"], report["text"]["name"]) == (3, 1e-3, 7, "text.txt")
    assert read_clips(tmp_path / "out").bits == 3
    options = ("--target", "llama.cpp", "--method", "rtn-oc", "--quiet")
    assert run("run", tmp_path / "out", "--out", tmp_path / "files", *options) == 0
    assert json.loads((tmp_path / "files" / "llama.cpp" / "verify.json").read_text())["ok"] is True
    gguf = tmp_path / "files" / "llama.cpp" / "model.gguf"
    assert run("finetune", gguf, "--out", tmp_path / "of_gguf", *FEW) == 0
    assert run("quantize", tmp_path / "of_gguf", "--out", tmp_path / "store", *options) == 0


def test_a_step_that_is_not_finite_is_told(model, tmp_path, capsys):
    assert run("finetune", model, "--out", tmp_path / "out", "--steps", "40", "--learning-rate", "1e3", *FEW[2:]) == 0
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    kept = json.loads((tmp_path / "out" / REPORT).read_text())["steps_kept"]
    assert 0 < kept < 40
    assert f"the step after {kept} of 40 was not finite" in line
    assert (tmp_path / "out" / CLIPS).is_file()


REFUSED = [
    ("--activation-bits 9", "invalid choice: 9"),
    ("--activation-bits 1", "invalid choice: 1"),
    ("--steps 0", "'0' is no whole number of at least 1"),
    ("--context 1", "--context 1: must be at least 2"),
    ("--context 4096", "--context 4096: {model} reads 512 tokens"),
    ("--kurtosis -1", "--kurtosis -1.0: must be a number from 0"),
    ("--kurtosis nan", "--kurtosis nan: must be a number from 0"),
    ("--learning-rate 0", "--learning-rate 0.0: must be a number above 0"),
    ("--learning-rate inf", "--learning-rate inf: must be a number above 0"),
    ("--seed -1", "--seed -1: must be a whole number from 0"),
    ("--text {short}", "short.txt: 46 tokens, but 9 sequences of 256 are needed"),
    ("--text {model}/none.txt", "none.txt: cannot be read"),
    ("--learning-rate 1e30 --context 32", "is not finite from the first step on; give a smaller --learning-rate than 1e+30"),
    ("--bits 4", "--bits: not an option here"),
    ("--epochs 3", "use --steps N, of one sequence each"),
    ("--lr 1e-5", "use --learning-rate 1e-5"),
]


@pytest.mark.parametrize(("options", "part"), REFUSED)
def test_what_is_refused_is_one_line_and_nothing_is_written(model, tmp_path, capsys, options, part):
    short = tmp_path / "short.txt"
    short.write_text("The quick brown fox jumps over the lazy dog, and the dog does not mind at all.")
    words = options.format(model=model, short=short).split()
    assert run("finetune", model, "--out", tmp_path / "out", *words, "--quiet") == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert part.format(model=model) in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_a_model_of_no_family_is_refused(model, tmp_path, capsys):
    other = shutil.copytree(model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "gemma"}))
    assert run("finetune", other, "--out", tmp_path / "out", *FEW) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_template_is_refused(tmp_path, capsys):
    path = make_gguf(tmp_path / "model.gguf", "gemma3")
    assert run("finetune", path, "--out", tmp_path / "out", *FEW) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "torch runs the families llama, mistral, qwen2, qwen3 here, not gemma3" in line
    assert not (tmp_path / "out").exists()
