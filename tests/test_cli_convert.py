"""``adadim convert``, and ``adadim run`` of a folder whose decoder is known by no name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.cli.main import main
from quantize.checkpoint import open_checkpoint
from tests.any_model import make_model, make_pictured

CALIBRATION = ("--calibration-tokens", "1024", "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("convert") / "model", "smollm3")


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


def test_a_folder_becomes_a_gguf(folder, tmp_path, capsys):
    assert run("convert", folder, "--out", tmp_path / "m.gguf", "--tokenizer-pre", "gpt-2") == 0
    told = capsys.readouterr().out
    assert "BF16" in told and "llama-cpp-python" in told and f"{(tmp_path / 'm.gguf').stat().st_size:,} bytes" in told
    assert run("convert", folder, "--out", tmp_path / "m.gguf", "--tokenizer-pre", "gpt-2") == 2
    assert "exists already" in capsys.readouterr().err


def test_run_converts_and_goes_on_from_there(folder, tmp_path, capsys):
    command = ("run", folder, "--out", tmp_path / "out", "--tokenizer-pre", "gpt-2", *CALIBRATION)
    assert run(*command) == 0
    assert "checks hold" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "llama.cpp" / "store" / "plan.json").read_text())["config"]
    assert config["token_weight"] == "gradient"
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert run(*command) == 0
    assert "taken as an earlier run of this command left it" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == files
    assert run(*(word if word != "gpt-2" else "qwen2" for word in command)) == 2  # not replaced without --force
    assert "source.gguf: exists already" in capsys.readouterr().err


def test_other_commands_name_the_one_that_converts(folder, tmp_path, capsys):
    assert run("quantize", folder, "--out", tmp_path / "store") == 2
    assert f"adadim convert {folder} --out MODEL.gguf" in capsys.readouterr().err


def test_a_twin_is_named(folder, tmp_path):
    assert run("convert", folder, "--out", tmp_path / "m.gguf", "--tokenizer-pre", "gpt-2") == 0
    plain = ("quantize", tmp_path / "m.gguf", *CALIBRATION)
    assert run(*plain, "--out", tmp_path / "size") == 0
    assert run(*plain, "--torch", folder, "--out", tmp_path / "gradient") == 0
    weighed = [json.loads((tmp_path / name / "plan.json").read_text())["config"]["token_weight"] for name in ("size", "gradient")]
    assert weighed == ["unit", "gradient"]


def test_what_sees_pictures_is_left_out_and_counted(tmp_path, capsys):
    model = make_pictured(tmp_path / "model")
    assert run("convert", model, "--out", tmp_path / "m.gguf", "--tokenizer-pre", "gpt-2") == 0
    assert "left out: vision_tower" in capsys.readouterr().out
    assert len(open_checkpoint(tmp_path / "m.gguf").specs) == 2 + 2 * 13
