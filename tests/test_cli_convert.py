"""``adadim convert``, and ``adadim run`` of a folder whose decoder is known by no name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from exporter.cli.main import main
from quantize import workers
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.shards import stored_tensors
from quantize.template import room
from tests.any_model import make_pictured

CALIBRATION = ("--calibration-tokens", "1024", "--quiet")


@pytest.fixture
def folder(kept) -> Path:
    return kept.model("smollm3")


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


def test_a_folder_becomes_a_gguf(folder, tmp_path, capsys):
    assert run("convert", folder, "--out", tmp_path / "m.gguf", "--tokenizer-pre", "gpt-2") == 0
    told = capsys.readouterr().out
    assert "BF16" in told and "llama-cpp-python" in told and f"{(tmp_path / 'm.gguf').stat().st_size:,} bytes" in told
    assert run("convert", folder, "--out", tmp_path / "m.gguf", "--tokenizer-pre", "gpt-2") == 2
    assert "exists already" in capsys.readouterr().err


def test_a_damaged_source_is_not_taken_again(folder, tmp_path, capsys):
    """Though its header is as it was."""
    command = (
        "run",
        folder,
        "--out",
        tmp_path,
        "--target",
        "llama.cpp",
        "--tokenizer-pre",
        "gpt-2",
        "--method",
        "rtn-oc",
        "--quiet",
    )
    assert run(*command) == 0
    path = tmp_path / "source.gguf"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:])
    assert run(*command) == 2
    assert "source.gguf: exists already" in capsys.readouterr().err
    assert run(*command, "--force") == 0
    assert path.read_bytes() == whole


SHORT = {  # what there is too little of -> what is said
    ("gguf", "disk"): r"m: to convert \S+model takes about 0 MB there, and 0 MB are free; free some, or name another",
    ("onnx", "disk"): r"m: to convert \S+model takes about 1 MB there, and 1 MB are free; free some, or name another",
    ("gguf", "memory"): r"model: .* about 0 MB of memory, and this machine has 0; convert it on a machine that",
    ("onnx", "memory"): r"has 1; convert it on a machine that has more, or write it for llama.cpp: --target",
}


@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_too_little_room_is_said_before_anything_is_written(form, folder, tmp_path, monkeypatch, capsys):
    specs = [tensor.spec for tensor in stored_tensors(folder, json.loads((folder / "config.json").read_text())).values()]
    weights, most = sum(spec.size for spec in specs), max(spec.size for spec in specs)
    needed = {"gguf": (2 * weights, 8 * most), "onnx": (6 * weights, int(6.5 * weights))}[form]
    pre = ("--tokenizer-pre", "gpt-2") if form == "gguf" else ()
    asked = ("convert", folder, "--format", form, "--out", tmp_path / "m", *pre)
    for what, less in (("disk", (1, 0)), ("memory", (0, 1)), ("nothing", (0, 0))):
        disk, memory = (size - short for size, short in zip(needed, less, strict=True))
        monkeypatch.setattr(room, "free_space", lambda *_, disk=disk: disk)
        monkeypatch.setattr(workers, "physical_memory", lambda *_, memory=memory: memory)
        if what == "nothing":
            assert run(*asked) == 0
            continue
        assert run(*asked) == 2
        line = capsys.readouterr().err
        assert re.search(SHORT[form, what], line) and line.count("\n") == 1
        assert not list(tmp_path.iterdir())


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


def test_what_cannot_be_is_said_before_anything_is_converted(folder, tmp_path, capsys):
    command = ("run", folder, "--out", tmp_path / "out", "--target", "onnxruntime")
    for option, told in (
        (("--tokenizer-pre", "gpt-2"), "--tokenizer-pre: is for GGUF files"),
        (("--target", "llama.cpp", "--bits", "4,8"), "files of one source are measured side by side"),
    ):
        assert run(*command, *option) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_both_formats_are_made_and_gone_on_from(folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ("run", folder, "--out", out, "--tokenizer-pre", "gpt-2", *CALIBRATION)
    assert run(*command) == 0
    assert capsys.readouterr().out.count("checks hold") == 2
    assert {path.name for path in out.iterdir()} == {"llama.cpp", "onnxruntime", "source.gguf", "source.onnx"}
    config = json.loads((out / "llama.cpp" / "store" / "plan.json").read_text())["config"]
    assert config["token_weight"] == "gradient"
    made = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    assert run(*command) == 0
    assert capsys.readouterr().out.count("taken as an earlier run of this command left it") == 2
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()} == made
    assert run(*(word if word != "gpt-2" else "qwen2" for word in command)) == 2  # not replaced without --force
    assert "source.gguf: exists already" in capsys.readouterr().err
    for source in ("source.gguf", "source.onnx"):  # each goes on by itself
        assert run("run", out / source, "--out", tmp_path / "again", "--method", "rtn-oc", "--quiet") == 0


def test_an_architecture_is_checked_from_its_config_alone(tmp_path, capsys):
    config = {"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 900}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(config | heads | {"architectures": ["Qwen3ForCausalLM"]}))
    assert run("check-architecture", tmp_path / "config.json", "--json", "--quiet") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model_type"] == "qwen3"
    for went in (report["gguf"], report["onnx"]):
        assert went["apart"] < 1e-5 and went["missed"] == [] and went["checks"] > 200 and went["weighed_by"] == "gradients"


def test_an_unknown_architecture_is_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of_tomorrow"}))
    assert run("check-architecture", tmp_path / "config.json") == 2
    assert "transformers does not run it" in capsys.readouterr().err
