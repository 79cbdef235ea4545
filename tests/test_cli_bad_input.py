"""Bad input: one line that names the file, the tensor and the fix; exit code 2; nothing left under the final name."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exporter.cli.main import main
from tests.stores import reseal
from tests.tiny import make_tiny_model

WEIGHTS = "model.safetensors"
DOWN = "model.layers.0.mlp.down_proj.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model")


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line on stderr of a command that must exit with 2."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("adadim: error: ")
    return lines[0]


def edit_weights(model: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
    weights = load_file(model / WEIGHTS)
    edit(weights)
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})


def poison(name: str, value: float) -> Callable[[Path], None]:
    def edit(weights: dict[str, np.ndarray]) -> None:
        weights[name][3, 5] = value

    def damage(model: Path) -> None:
        edit_weights(model, edit)

    damage.__name__ = f"{name} {value}"
    return damage


def reshape(model: Path) -> None:
    def edit(weights: dict[str, np.ndarray]) -> None:
        weights[DOWN] = np.ascontiguousarray(weights[DOWN][:, :-32])

    edit_weights(model, edit)


def drop(model: Path) -> None:
    def edit(weights: dict[str, np.ndarray]) -> None:
        del weights[DOWN]

    edit_weights(model, edit)


def stray(model: Path) -> None:
    edit_weights(model, lambda weights: weights.update({"model.layers.7.extra": np.zeros(4, np.float32)}))


def truncate(model: Path) -> None:
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[: len(data) - 1000])


def other_architecture(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))


def only_pickles(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


class Bomb:
    """Whoever unpickles this fails the test."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def no_weights(model: Path) -> None:
    (model / WEIGHTS).unlink()


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


BAD_MODELS = [
    (poison(UP, np.nan), [WEIGHTS, UP, "NaN or infinity", "row 3, column 5"]),
    (poison(UP, np.inf), [WEIGHTS, UP, "NaN or infinity", "row 3, column 5"]),
    (truncate, [WEIGHTS, "truncated"]),
    (drop, ["model", DOWN, "missing"]),
    (stray, ["model", "model.layers.7.extra"]),
    (reshape, ["model", DOWN, "64", "96"]),
    (other_architecture, ["config.json", "mamba", "adadim convert"]),
    (only_pickles, ["model", "pickled weights, which are never loaded", "writes safetensors"]),
    (no_weights, ["model", "safetensors"]),
    (no_config, ["config.json"]),
]


@pytest.mark.parametrize(("damage", "parts"), BAD_MODELS, ids=lambda item: getattr(item, "__name__", ""))
def test_bad_model(model, tmp_path, capsys, damage, parts):
    damage(model)
    line = fails(capsys, "quantize", model, "--out", tmp_path / "store", "--method", "rtn-oc")
    assert not [part for part in parts if part not in line]
    assert not [item.name for item in tmp_path.iterdir() if item.name.startswith("store")]


def test_hub_id_names_the_download_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, "quantize", "HuggingFaceTB/SmolLM2-135M", "--out", "store")
    assert "hf download HuggingFaceTB/SmolLM2-135M" in line


def test_a_hub_id_of_the_first_days_too(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "hf download gpt2" in fails(capsys, "quantize", "gpt2", "--out", "store")
    assert "hf download" not in fails(capsys, "quantize", "model.gguf", "--out", "store")


def test_missing_source(tmp_path, capsys):
    assert str(tmp_path / "nothing") in fails(capsys, "quantize", tmp_path / "nothing", "--out", tmp_path / "store")


def test_truncated_gguf(tmp_path, capsys):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x01")
    assert "model.gguf" in fails(capsys, "quantize", tmp_path / "model.gguf", "--out", tmp_path / "store")


def test_calibration_text_too_short(model, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("Too short.")
    line = fails(capsys, "quantize", model, "--out", tmp_path / "store", "--calibration", tmp_path / "short.txt")
    assert "short.txt" in line
    assert "tokens" in line
    assert not (tmp_path / "store").exists()


def test_calibration_text_missing_or_not_utf8(model, tmp_path, capsys):
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    for name, part in (("latin1.txt", "UTF-8"), ("nothing.txt", "No such file")):
        line = fails(capsys, "quantize", model, "--out", tmp_path / "store", "--calibration", tmp_path / name)
        assert name in line
        assert part in line


def test_existing_output_needs_force(model, tmp_path, capsys):
    store, args = tmp_path / "store", ("--method", "rtn-oc", "--quiet")
    assert main(["quantize", str(model), "--out", str(store), *args]) == 0
    before = (store / "plan.json").read_bytes()
    line = fails(capsys, "quantize", model, "--out", store, *args)
    assert str(store) in line
    assert "--force" in line
    assert (store / "plan.json").read_bytes() == before
    assert main(["quantize", str(model), "--out", str(store), *args, "--force"]) == 0


def test_run_refuses_an_existing_output_before_any_work(model, tmp_path, capsys):
    (tmp_path / "out" / "onnxruntime" / "onnx").mkdir(parents=True)
    line = fails(capsys, "run", model, "--out", tmp_path / "out")
    assert str(tmp_path / "out" / "onnxruntime" / "onnx") in line
    assert not (tmp_path / "out" / "llama.cpp").exists()


def test_run_looks_into_folders_that_force_would_replace_before_any_work(model, tmp_path, capsys):
    (tmp_path / "out" / "onnxruntime" / "onnx").mkdir(parents=True)
    (tmp_path / "out" / "onnxruntime" / "onnx" / "thesis.txt").write_text("mine")
    line = fails(capsys, "run", model, "--out", tmp_path / "out", "--force")
    assert str(tmp_path / "out" / "onnxruntime" / "onnx") in line
    assert not (tmp_path / "out" / "llama.cpp").exists()


LATE = [
    (["--target", "onnxruntime", "--grid", "q4_0"], "drop --grid q4_0"),
    (["--bits", "5"], "the int grid stores"),
]


@pytest.mark.parametrize(("options", "part"), LATE, ids=lambda item: " ".join(item))
def test_run_plans_every_target_before_it_quantizes_the_first(model, tmp_path, capsys, options, part):
    line = fails(capsys, "run", model, "--out", tmp_path / "out", "--target", "llama.cpp", "--target", "onnxruntime", *options)
    assert part in line
    assert not (tmp_path / "out").exists()


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def no_tokenizer_config(model: Path) -> None:
    (model / "tokenizer_config.json").unlink()


def odd_rope(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}))


def odd_cuts(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(tokenizer | {"pre_tokenizer": {"type": "Whitespace"}}))


UNWRITABLE = [
    (no_tokenizer, "onnxruntime", "needs a tokenizer.json"),
    (no_tokenizer_config, "onnxruntime", "needs a tokenizer_config.json"),
    (no_tokenizer, "llama.cpp", "tokenizer.json: missing"),
    (odd_rope, "onnxruntime", "rope scaling 'dynamic' (rope_scaling) is not supported"),
    (odd_rope, "llama.cpp", "rope scaling 'dynamic' (rope_scaling) is not supported"),
    (odd_cuts, "llama.cpp", "name it with --tokenizer-pre"),
]


@pytest.mark.parametrize(("damage", "target", "part"), UNWRITABLE)
def test_what_no_writer_takes_is_refused_before_quantizing(model, tmp_path, capsys, damage, target, part):
    damage(model)
    assert part in fails(capsys, "run", model, "--out", tmp_path / "out", "--target", target, "--method", "rtn-oc")
    assert not (tmp_path / "out").exists()


def test_a_pre_tokenizer_may_be_named_at_export(model, tmp_path, capsys):
    odd_cuts(model)
    store = tmp_path / "store"
    assert main(["quantize", str(model), "--out", str(store), "--method", "rtn-oc", "--quiet"]) == 0
    assert "--tokenizer-pre" in fails(capsys, "export", "gguf", store, "--out", tmp_path / "m.gguf")
    assert main(["export", "gguf", str(store), "--out", str(tmp_path / "m.gguf"), "--tokenizer-pre", "olmo", "--quiet"]) == 0


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("target", ["llama.cpp", "onnxruntime"])
def test_garbage_beside_the_weights(model, tmp_path, capsys, name, target):
    (model / name).write_text("{")
    assert name in fails(capsys, "quantize", model, "--out", tmp_path / "out", "--target", target, "--method", "rtn-oc")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("args", [("quantize", "{model}", "--method", "rtn-oc"), ("run", "{model}", "--method", "rtn-oc")])
def test_unwritable_output(model, tmp_path, capsys, args):
    (tmp_path / "file").write_text("not a directory")
    line = fails(capsys, *(arg.format(model=model) for arg in args), "--out", tmp_path / "file" / "out")
    assert str(tmp_path / "file") in line


OPTIONS = [
    (["--target", "llama.cpp", "--method", "gptq-ic"], ["llama.cpp", "cannot hold per-IC groups", "gptq-oc"]),
    (["--target", "llama.cpp", "--bits", "3"], ["q3_k", "256", "--allow-fallback"]),
    (["--target", "onnxruntime", "--grid", "q4_0"], ["onnxruntime", "q4_0", "drop --grid"]),
    (["--target", "llama.cpp", "--grid", "int"], ["llama.cpp", "ggml blocks"]),
    (["--target", "onnxruntime", "--bits", "5"], ["5", "2, 3, 4, 8"]),
    (["--target", "onnxruntime", "--group-size", "48"], ["--group-size 48", "choose one of 16, 32, 64, 128, 256 or channel"]),
    (["--target", "llama.cpp", "--group-size", "64"], ["q4_0", "32", "--group-size"]),
    (["--target", "llama.cpp", "--grid", "q9_9"], ["q9_9", "q4_0"]),
    (["--embedding", "q9_9"], ["--embedding q9_9"]),
    (["--calibration-tokens", "0"], ["--calibration-tokens 0"]),
    (["--max-slowdown", "0.5"], ["--max-slowdown 0.5"]),
    (["--recipe", "nothing.toml"], ["nothing.toml"]),
]


@pytest.mark.parametrize(("options", "parts"), OPTIONS, ids=lambda item: " ".join(item))
def test_contradicting_options(model, tmp_path, capsys, options, parts):
    line = fails(capsys, "quantize", model, "--out", tmp_path / "store", *options)
    assert not [part for part in parts if part not in line]
    assert not (tmp_path / "store").exists()


def test_a_shape_that_fits_no_block_names_the_tensor_and_the_numbers(tmp_path, capsys):
    model = make_tiny_model(tmp_path / "model", ffn=80)
    args = ("quantize", model, "--out", tmp_path / "store", "--method", "rtn-oc")
    line = fails(capsys, *args)
    assert not [part for part in (DOWN, "64x80", "block of 32", "64 or 96 would fit", "--allow-fallback") if part not in line]
    assert main([*map(str, args), "--allow-fallback"]) == 0
    assert f"{DOWN}: " in capsys.readouterr().out


ARGPARSE = [
    (["quantize"], "adadim quantize: error: the following arguments are required: SOURCE"),
    (["quantize", "m", "--out", "s", "--bits", "7"], "or a fraction as 2.5, not '7'; see"),
    (["quantize", "m", "--out", "s", "--group-size", "-3"], "argument --group-size"),
    (["export", "gguf", "s"], "adadim export gguf: error"),
    (["nonsense"], "adadim: error: argument COMMAND: invalid choice"),
]


@pytest.mark.parametrize(("args", "part"), ARGPARSE)
def test_wrong_arguments(capsys, args, part):
    with pytest.raises(SystemExit) as stop:
        main(args)
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert part in err
    assert err.count("\n") == 1


def test_export_of_the_other_kind(model, tmp_path, capsys):
    assert main(["quantize", str(model), "--out", str(tmp_path / "store"), "--method", "rtn-oc", "--quiet"]) == 0
    line = fails(capsys, "export", "onnx", tmp_path / "store", "--out", tmp_path / "onnx")
    assert "quantized for target llama.cpp" in line
    assert "--target" in line


@pytest.mark.parametrize("command", ["export gguf {} --out out.gguf", "inspect {}", "verify {} --source {}"])
def test_not_there(tmp_path, capsys, command):
    assert "nothing" in fails(capsys, *command.format(tmp_path / "nothing", tmp_path / "nothing").split())


def test_evaluation_text_too_short(model, tmp_path, capsys):
    store, gguf, text = tmp_path / "store", tmp_path / "model.gguf", tmp_path / "short.txt"
    assert main(["quantize", str(model), "--out", str(store), "--method", "rtn-oc", "--quiet"]) == 0
    assert main(["export", "gguf", str(store), "--out", str(gguf), "--quiet"]) == 0
    text.write_text("Too short.")
    line = fails(capsys, "eval", gguf, "--source", model, "--text", text, "--json", tmp_path / "eval.json")
    assert "short.txt" in line
    assert "tokens" in line
    assert not (tmp_path / "eval.json").exists()


def test_existing_and_unwritable_files_of_export(model, tmp_path, capsys):
    store, gguf = tmp_path / "store", tmp_path / "model.gguf"
    assert main(["quantize", str(model), "--out", str(store), "--method", "rtn-oc", "--quiet"]) == 0
    gguf.write_bytes(b"precious")
    assert "--force" in fails(capsys, "export", "gguf", store, "--out", gguf)
    assert gguf.read_bytes() == b"precious"
    assert str(gguf) in fails(capsys, "export", "gguf", store, "--out", gguf / "inside")


def test_damaged_store(model, tmp_path, capsys):
    store = tmp_path / "store"
    assert main(["quantize", str(model), "--out", str(store), "--method", "rtn-oc", "--quiet"]) == 0
    (store / "plan.json").write_text("{")
    assert "plan.json is damaged" in fails(capsys, "export", "gguf", store, "--out", tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("command", ["export gguf {} --out {}.gguf", "export onnx {} --out {}.onnx", "inspect {}"])
def test_a_store_for_an_unknown_runtime(model, tmp_path, capsys, command):
    store = tmp_path / "store"
    assert main(["quantize", str(model), "--out", str(store), "--method", "rtn-oc", "--quiet"]) == 0
    plan = json.loads((store / "plan.json").read_text()) | {"target": "toaster"}
    (store / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
    reseal(store / "plan.json")
    assert "target 'toaster'" in fails(capsys, *command.format(store, store).split())


def on_a_full_disk(tmp_path: Path, *args: object) -> None:
    """Run a command that may write no file larger than 8 KiB; it must say so in one line and leave nothing named out*."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192));"
        "from exporter.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert "out" in lines[0]
    assert "too large" in lines[0]
    assert not [item.name for item in tmp_path.iterdir() if item.name.startswith("out")]


def test_full_disk_while_quantizing(model, tmp_path):
    on_a_full_disk(tmp_path, "quantize", model, "--out", tmp_path / "out", "--method", "rtn-oc", "--quiet")


@pytest.mark.parametrize(("target", "kind"), [("llama.cpp", "gguf"), ("onnxruntime", "onnx")])
def test_full_disk_while_exporting(model, tmp_path, target, kind):
    store = tmp_path / "store"
    assert main(["quantize", str(model), "--out", str(store), "--method", "rtn-oc", "--target", target, "--quiet"]) == 0
    on_a_full_disk(tmp_path, "export", kind, store, "--out", tmp_path / "out")


def test_a_missing_library_names_its_extra(tmp_path, model, capsys, monkeypatch):
    import transformers.modeling_utils  # noqa: F401 - while torch is there: without it, it says a line of its own

    monkeypatch.setitem(sys.modules, "quantize.source", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "quantize.source")
    line = fails(capsys, "quantize", model, "--out", tmp_path / "store", "--method", "gptq-oc")
    assert line.endswith("torch is not installed; pip install 'adadim-edge[torch]'")
    assert not (tmp_path / "store").exists()
