"""A plan for a file's size: never above it, close below it, and the file that is then written is exactly that large."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest

from exporter.cli.main import main
from exporter.file_size import parse_size
from exporter.targets import TARGETS
from quantize.checkpoint import open_checkpoint
from quantize.grids.levels import Levels
from quantize.model_config import EMBEDDING, HEAD
from quantize.planning.options import options_of
from quantize.planning.sensitivity import Sensitivity
from quantize.store.tensors import QuantizedStore
from quantize.turn import Rotation
from quantize.types import Axis
from tests.tiny import make_tiny_model

MODELS = {  # a width that 256 divides, widths that 32 does not divide, a head of its own
    "even": {"ffn": 256, "layers": 3},
    "odd": {"hidden": 96, "heads": 3, "kv_heads": 1, "ffn": 80, "vocab": 331, "dtype": "BF16"},
    "untied": {"tied": False, "ffn": 128, "dtype": "F16", "kv_heads": 4},
}
CASES = [(model, target) for model in MODELS for target in TARGETS]
STATIC = "onnxruntime-w8a8"
MODELS["wide"] = {"ffn": 576, "layers": 1}

CALIBRATION = {"text": "none", "sha256": "0" * 64, "tokens": 512, "sequence": 512, "rank_poor": []}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(model folder, sensitivity file) of a model and a target, made once; the losses are what bits alone would predict."""

    @cache
    def make(model: str, target: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("budget")
        source = open_checkpoint(make_tiny_model(folder / "model", **MODELS[model]))
        options = {}
        for index, (name, spec) in enumerate(source.specs.items()):
            if len(spec.shape) == 2:
                found = options_of(spec, TARGETS[target], 0)
                for record in found:
                    better = 0.01 if index % 3 and record.axis is Axis.PER_IC else 1
                    record.loss[str(record.axis)] = better * (1 + index % 5) * 4.0**-record.grid.bits_per_weight
                options[name] = found
        identity = {"name": source.path.name, "sha256": source.sha256}
        file = folder / "sensitivity.json"
        file.write_bytes(Sensitivity(identity, target, CALIBRATION, options).to_json())
        return folder / "model", file

    return make


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


def quantize(source, sensitivity, target, *options) -> int:
    return run("quantize", source, "--target", target, "--method", "rtn-oc", "--sensitivity", sensitivity, "--quiet", *options)


def write(source, sensitivity, target, out, *options) -> int:
    """Bytes of the model file."""
    assert quantize(source, sensitivity, target, "--out", out / "store", *options) == 0
    kind = "onnx" if "onnx" in target else "gguf"
    assert run("export", kind, out / "store", "--out", out / "file", "--quiet") == 0
    parts = [out / "file"] if kind == "gguf" else [out / "file" / name for name in ("model.onnx", "model.onnx.data")]
    return sum(part.stat().st_size for part in parts)


def budget_of(out):
    return QuantizedStore(out / "store").header["budget"]


def least_size(capsys, *case):
    assert quantize(*case, "--dry-run", "--target-size", "1B") == 2
    return int(re.search(r"the smallest takes ([\d,]+)", capsys.readouterr().err)[1].replace(",", ""))


@pytest.mark.parametrize(("model", "target"), CASES)
def test_the_file_is_as_large_as_planned(made, tmp_path, capsys, model, target):
    case = (*made(model, target), target)
    least = least_size(capsys, *case)
    assert write(*case, tmp_path / "least", "--target-size", f"{least}B") == least
    goal = int(1.3 * least)
    size = write(*case, tmp_path / "more", "--target-size", f"{goal}B", "--method", "rtn-ada", "--max-slowdown", "100")
    budget = budget_of(tmp_path / "more")
    assert goal * 0.99 <= size <= goal
    assert (budget["bytes"], budget["target_bytes"]) == (size, goal)
    assert f"{size:,} bytes" in capsys.readouterr().out
    assert budget["predicted_kl"] < budget_of(tmp_path / "least")["predicted_kl"]


def test_turned_levels_are_taken_where_they_are_better(made, tmp_path):
    model, file = made("even", "onnxruntime+adadim")
    raw, better = json.loads(file.read_text()), tmp_path / "better.json"
    for one in raw["tensors"]:
        if "turn" in one and "self_attn" in one["name"]:
            one["loss"] = {axis: loss / 100 for axis, loss in one["loss"].items()}
    better.write_text(json.dumps(raw))
    size = write(model, better, "onnxruntime+adadim", tmp_path, "--target-bpw", "7", "--max-slowdown", "100")
    records = QuantizedStore(tmp_path / "store").records.values()
    turned = {record.name: record for record in records if record.turn is not None}
    assert set(turned) >= {record.name for record in records if "self_attn" in record.name and "proj.weight" in record.name}
    assert all(record.turn == Rotation.of(record.shape[1], 0) for record in turned.values())
    assert all(isinstance(record.grid, Levels) for record in turned.values())
    assert size == budget_of(tmp_path)["bytes"]
    assert run("verify", tmp_path / "file", "--store", tmp_path / "store", "--source", model, "--quiet") == 0


def test_channels_in_float16_are_taken_where_they_are_better(made, tmp_path):
    """Different numbers of them by readers of one input. Not beside what moves weights afterwards, nor if none are asked for."""
    model, file = made("even", "onnxruntime")
    raw, better = json.loads(file.read_text()), tmp_path / "better.json"
    wanted = {"q_proj": 4, "v_proj": 1, "down_proj": 16}
    for one in raw["tensors"]:
        own = wanted.get(one["name"].split(".")[-2])
        worth = 1 if "float_columns" not in one else 1e-6 if one["float_columns"] == own else 1e6
        one["loss"] = {axis: worth * loss for axis, loss in one["loss"].items()}
    better.write_text(json.dumps(raw))
    options = ("--target-bpw", "10", "--max-slowdown", "100", "--calibration-tokens", "512")
    size = write(model, better, "onnxruntime", tmp_path, *options)
    assert size == budget_of(tmp_path)["bytes"]
    assert kept_columns(tmp_path) == wanted
    assert run("verify", tmp_path / "file", "--store", tmp_path / "store", "--source", model, "--quiet") == 0
    for other in (("--float-columns", "0"), ("--tune-steps", "1")):
        write(model, better, "onnxruntime", tmp_path / other[0], *options, *other)
        assert kept_columns(tmp_path / other[0]) == {}


def kept_columns(out):
    records = QuantizedStore(out / "store").records.values()
    return {record.name.split(".")[-3]: record.shape[1] for record in records if record.inputs}


def test_scales_of_inputs_are_taken_where_they_are_better(made, tmp_path):
    """Of some readers of an input, and not of others."""
    model, file = made("even", STATIC)
    raw, better = json.loads(file.read_text()), tmp_path / "better.json"
    for one in raw["tensors"]:
        wanted = one["name"].endswith(("q_proj.weight", "v_proj.weight", "up_proj.weight"))
        worth = 1e-6 if wanted and "activation" in one else 1 if "activation" not in one else 1e3
        one["loss"] = {axis: worth * loss for axis, loss in one["loss"].items()}
    better.write_text(json.dumps(raw))
    options = ("--target-bpw", "12", "--max-slowdown", "100", "--calibration-tokens", "512")
    size = write(model, better, STATIC, tmp_path, *options)
    records = QuantizedStore(tmp_path / "store").records.values()
    held = {record.name: record.activation for record in records if record.activation is not None}
    assert {name.split(".")[-2] for name in held} == {"q_proj", "v_proj", "up_proj"}
    assert {one.name for one in held.values()} == {"a8-tensor"}
    assert held["model.layers.0.self_attn.q_proj.weight"] == held["model.layers.0.self_attn.v_proj.weight"]
    assert size == budget_of(tmp_path)["bytes"]
    assert run("verify", tmp_path / "file", "--store", tmp_path / "store", "--source", model, "--quiet") == 0


def test_seconds_are_spent_on_inputs_rounded_in_blocks(made, tmp_path):
    """As many as are allowed."""
    model, file = made("even", STATIC)
    kept = {}
    for bound in ("1", "1.5", "100"):
        options = ("--target-bpw", "12", "--max-slowdown", bound, "--calibration-tokens", "512")
        assert quantize(model, file, STATIC, "--out", tmp_path / bound, *options) == 0
        store = QuantizedStore(tmp_path / bound)
        kept[bound] = store.header["budget"]["predicted_kl"]
    assert kept["1"] > kept["1.5"] >= kept["100"]


def test_a_dry_run_says_what_the_store_will_hold_and_writes_nothing(made, tmp_path, capsys):
    case = (*made("even", "llama.cpp"), "llama.cpp")
    before = sorted(case[0].parent.rglob("*"))
    assert quantize(*case, "--dry-run", "--target-size", "150kB") == 0
    planned = capsys.readouterr().out.splitlines()
    assert sorted(case[0].parent.rglob("*")) == before
    assert quantize(*case, "--out", tmp_path / "store", "--target-size", "150kB") == 0
    assert capsys.readouterr().out.splitlines()[1:] == planned[1:]
    assert any("below the 150,000 asked for" in line for line in planned)
    assert any("KL divergence" in line for line in planned)


def test_the_same_inputs_give_the_same_store_and_keep_the_sensitivity(made, tmp_path):
    case = (*made("untied", "onnxruntime"), "onnxruntime")
    for out in ("one", "two"):
        assert quantize(*case, "--out", tmp_path / out, "--target-bpw", "8") == 0
    one, two = ((tmp_path / out / "plan.json").read_bytes() for out in ("one", "two"))
    assert one == two
    assert (tmp_path / "one" / "assets" / "sensitivity.json").read_bytes() == case[1].read_bytes()
    specs = open_checkpoint(case[0]).specs.values()
    assert QuantizedStore(tmp_path / "one").header["budget"]["target_bytes"] == sum(spec.size for spec in specs)


def test_room_for_everything_keeps_everything(made, tmp_path):
    case = (*made("untied", "llama.cpp"), "llama.cpp")
    write(*case, tmp_path, "--target-size", "1GB")
    assert budget_of(tmp_path)["predicted_kl"] == 0
    assert {record.dtype for record in QuantizedStore(tmp_path / "store").records.values() if len(record.shape) == 2} == {"F16"}


def test_embedding_and_head_that_are_asked_for_are_kept(made, tmp_path):
    case = (*made("even", "llama.cpp"), "llama.cpp")
    size = write(*case, tmp_path, "--target-size", "200kB", "--embedding", "source", "--head", "q4_0")
    records = QuantizedStore(tmp_path / "store").records
    assert records[EMBEDDING].grid is None
    assert records[HEAD].grid.name == "q4_0"
    assert size == budget_of(tmp_path)["bytes"] <= 200_000


def test_what_only_the_calibration_tells_does_not_change_the_size(made, tmp_path):
    options = ("--target-bpw", "6", "--method", "gptq-oc", "--calibration-tokens", "512", "--transforms", "all")
    size = write(*made("wide", "onnxruntime"), "onnxruntime", tmp_path, *options)
    header = QuantizedStore(tmp_path / "store").header
    assert "1" in "".join(header["transforms"].values())
    assert header["calibration"]["rank_poor"]
    assert header["budget"]["bytes"] == size


def test_slow_axes_are_left_out(made, tmp_path):
    case = (*made("untied", "onnxruntime"), "onnxruntime")
    for bound, axes in (("1", {Axis.PER_OC}), ("100", set(Axis))):
        options = ("--target-bpw", "10", "--method", "rtn-ada", "--max-slowdown", bound)
        assert quantize(*case, "--out", tmp_path / bound, *options) == 0
        records = QuantizedStore(tmp_path / bound).records.values()
        assert {record.axis for record in records if record.grid is not None} == axes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target-size", "1kB"), "no llama.cpp file of 1,000 bytes; the smallest takes"),
        (("--target-size", "1MB", "--bits", "4"), "--bits: a target size chooses"),
        (("--target-size", "1MB", "--grid", "q4_0"), "--grid: a target size chooses"),
        (("--target-size", "1MB", "--group-size", "32"), "--group-size: a target size chooses"),
        (("--target-size", "1MB", "--recipe", "none.toml"), "--recipe: a target size chooses"),
        (
            ("--target-size", "1MB", "--method", "rtn-ic"),
            "no linear fits a grid of target llama.cpp on the axis of",
        ),
        ((), "--sensitivity"),
    ],
)
def test_what_cannot_be_is_one_line(made, tmp_path, capsys, options, words):
    assert quantize(*made("even", "llama.cpp"), "llama.cpp", "--out", tmp_path / "store", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_the_smallest_size_that_an_error_names_can_be_asked_for(made, tmp_path, capsys):
    case = (*made("even", "llama.cpp"), "llama.cpp")
    assert quantize(*case, "--dry-run", "--target-size", "1B") == 2
    named = re.search(r"ask for at least (\S+)", capsys.readouterr().err)[1]
    assert quantize(*case, "--dry-run", "--target-size", named) == 0


def test_a_sensitivity_of_something_else_is_refused(made, tmp_path, capsys):
    model, sensitivity = made("even", "llama.cpp")
    assert quantize(model, sensitivity, "onnxruntime", "--dry-run", "--target-size", "1MB") == 2
    assert "for target llama.cpp, not for onnxruntime" in capsys.readouterr().err
    other, _ = made("odd", "llama.cpp")
    assert quantize(other, sensitivity, "llama.cpp", "--dry-run", "--target-size", "1MB") == 2
    assert "was measured on another model" in capsys.readouterr().err
    raw = json.loads(sensitivity.read_text())
    for damage in ("", "[]", "{}", json.dumps(raw | {"format": 0}), json.dumps(raw | {"tensors": [{"name": EMBEDDING}]})):
        (tmp_path / "damaged.json").write_text(damage)
        assert quantize(model, tmp_path / "damaged.json", "llama.cpp", "--dry-run", "--target-size", "1MB") == 2
        assert "adadim sensitivity" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "size"), [("80MB", 80_000_000), ("76.5 MiB", 80_216_064), ("1kB", 1000), ("2GiB", 2**31), ("7B", 7)]
)
def test_sizes(word, size):
    assert parse_size(word) == size


@pytest.mark.parametrize("word", ["", "80", "MB", "-1MB", "80mb", "80 M", "1e3kB", "NaNMB", "8٣MB"])
def test_what_is_no_size(word, capsys):
    with pytest.raises(ValueError, match="is no size"):
        parse_size(word)
    with pytest.raises(SystemExit):
        run("quantize", "model", "--out", "store", f"--target-size={word}")
    assert "for example 80MB" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["0", "-1", "nan", "inf", "33", "four"])
def test_what_is_no_number_of_bits(word, capsys):
    with pytest.raises(SystemExit):
        run("quantize", "model", "--out", "store", f"--target-bpw={word}")
    assert "is no number of bits" in capsys.readouterr().err


def test_either_a_size_or_bits_and_a_dry_run_needs_one(capsys):
    with pytest.raises(SystemExit):
        run("quantize", "model", "--out", "store", "--target-bpw", "4", "--target-size", "1MB")
    assert "not allowed with" in capsys.readouterr().err
    assert run("quantize", "model", "--dry-run") == 2
    assert "--dry-run" in capsys.readouterr().err
