"""The command line as a person uses it, on tiny models: every command, its keys, its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.cli import main as cli
from exporter.cli.main import main
from exporter.cli.options import build_parser
from exporter.targets import TARGETS
from quantize.transforms import NAMES
from tests.tiny import TEXT, make_tiny_model

COMMANDS = (
    *(
        "quantize",
        "export gguf",
        "export onnx",
        "verify",
        "eval",
        "compare",
        "report",
        "inspect",
        "run",
        "sensitivity",
        "imatrix",
        "finetune",
        "convert",
        "check-architecture",
    ),
    *("bench kernel", "bundle", "bundle verify", "methods", "doctor", "completion"),
)
EVAL_KEYS = {"ppl", "source_ppl", "kld", "kld_p99", "top1", "tokens", "bytes", "tokens_per_s", "runtime"}
CHECK_KEYS = {"name", "tensor", "error", "tolerance", "ok"}
TOTAL_KEYS = {"bytes", "weights", "bits_per_weight"}
TENSOR_KEYS = {"name", "grid", "bits", "group_size", "axis", "shape", "bytes"}
CALIBRATION = ("--calibration-tokens", "512", "--quiet")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("cli") / "model")


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example_and_every_default(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "example:" in text
    assert f"adadim {command}".strip() in text


def test_defaults_stand_in_help(capsys):
    with pytest.raises(SystemExit):
        main(["quantize", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "(default: the effort's)",
        "(default: 4, onnxruntime-w8a8 8)",
        "32 for GGUF, 64 for ONNX",
        "(default: 8 bits of the target)",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("word", "names"), [("none", ()), ("all", NAMES), ("ffn-order,norm-gains", ("ffn-order", "norm-gains")), ("x", ("x",))]
)
def test_transforms_are_none_all_or_some(word, names):
    assert build_parser().parse_args(["quantize", "m", "--out", "s", "--transforms", word]).transforms == names


def test_every_option_is_explained():
    parsers = [build_parser()]
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action.choices, dict):
                parsers.extend(action.choices.values())
            elif action.option_strings:
                assert action.help
    assert len(parsers) == 3 + len(COMMANDS)  # and adadim itself, export and bench


@pytest.mark.parametrize("target", TARGETS)
def test_the_steps_one_by_one(model, tmp_path, capsys, target):
    store = tmp_path / "store"
    assert run("quantize", model, "--out", store, "--target", target, *CALIBRATION) == 0
    assert "bits a weight" in capsys.readouterr().out
    kind = "gguf" if "gguf" in target or "llama" in target else "onnx"
    exported = tmp_path / ("model.gguf" if kind == "gguf" else "onnx")
    assert run("export", kind, store, "--out", exported, "--quiet") == 0
    check_inspect(capsys, exported)
    check_inspect(capsys, store)
    report = tmp_path / "verify.json"
    assert run("verify", exported, "--source", model, "--store", store, "--json", report, "--quiet") == 0
    verdict = json.loads(report.read_text())
    assert verdict["ok"] is True
    assert all(set(check) == CHECK_KEYS for check in verdict["checks"])
    weights_only = ["--weights-only"] if target == "gguf-adadim" else []
    check_eval(tmp_path, model, exported, *weights_only)


def check_inspect(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    capsys.readouterr()
    assert run("inspect", path, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["totals"]) >= TOTAL_KEYS
    assert all(set(tensor) >= TENSOR_KEYS for tensor in report["tensors"])
    assert run("inspect", path) == 0
    assert "bits a weight" in capsys.readouterr().out


def check_eval(tmp_path: Path, model: Path, exported: Path, *more: str) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    report, text = tmp_path / "eval.json", tmp_path / "text.txt"
    options = ("--context", "64", "--chunks", "2", "--json", report, "--quiet", *more)
    assert run("eval", exported, "--source", model, "--text", text, *options) == 0
    assert set(json.loads(report.read_text())) == EVAL_KEYS


def test_run_does_all_of_it_and_verify_sees_a_flipped_code(model, tmp_path, capsys):
    assert run("run", model, "--out", tmp_path / "out", *CALIBRATION) == 0
    out = capsys.readouterr().out
    assert "llama.cpp holds no per-IC groups: gptq-ada means gptq-oc here" in out
    for folder, name in (("llama.cpp", "model.gguf"), ("onnxruntime", "onnx/model.onnx")):
        assert (tmp_path / "out" / folder / name).is_file()
        assert json.loads((tmp_path / "out" / folder / "verify.json").read_text())["ok"] is True
    gguf = tmp_path / "out" / "llama.cpp" / "model.gguf"
    data = bytearray(gguf.read_bytes())
    data[-5] ^= 0x01  # the last tensor's last block: a code of blk.1.ffn_down or a norm's float
    gguf.write_bytes(data)
    assert run("verify", gguf, "--source", model, "--store", gguf.with_name("store"), "--quiet") == 1
    assert "MISS" in capsys.readouterr().out


def test_a_sliding_window_ends_the_context_of_every_file(tmp_path, capsys):
    model = make_tiny_model(tmp_path / "model", "mistral")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"sliding_window": 48}))
    assert run("run", model, "--out", tmp_path / "out", "--method", "rtn-oc", "--quiet") == 0
    assert "context cut from 512 to the sliding window of 48" in capsys.readouterr().out
    genai = json.loads((tmp_path / "out" / "onnxruntime" / "onnx" / "genai_config.json").read_text())
    assert genai["model"]["context_length"] == 48


def test_the_same_inputs_give_the_same_bytes(model, tmp_path):
    for name in ("a", "b"):
        assert run("quantize", model, "--out", tmp_path / name, "--target", "onnxruntime", *CALIBRATION) == 0
    files = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("a", "b")
    ]
    assert files[0] == files[1]


def test_rtn_without_calibration_never_imports_torch(model, tmp_path):
    code = (
        "import sys; from exporter.cli.main import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    args = ("quantize", model, "--out", tmp_path / "store", "--method", "rtn-oc")
    subprocess.run([sys.executable, "-c", code, *map(str, args)], check=True, capture_output=True)


def test_interrupted(model, tmp_path, capsys, monkeypatch):
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "quantize", interrupt)
    assert run("quantize", model, "--out", tmp_path / "store") == 130
    assert capsys.readouterr().err == "adadim: interrupted\n"
