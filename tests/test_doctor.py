"""What ``adadim doctor`` says with all of it installed, with some of it, and with versions that are too old."""

from __future__ import annotations

import shlex

import pytest

from exporter.cli.doctor import COMMANDS as CHECKED
from exporter.cli.doctor import TARGETS as CHECKED_TARGETS
from exporter.cli.doctor import doctor, requirements
from exporter.cli.main import COMMANDS, main
from exporter.cli.options import build_parser
from exporter.targets import TARGETS

LINES = [
    "numpy>=2.0",
    'torch>=2.6; extra == "torch"',
    'mobius-onnx<0.2,>=0.1; extra == "onnx"',
    'xllamacpp==2026.10.11549; extra == "runtimes"',
    "adadim-edge[onnx]; extra == 'all'",
    'pytest>=9; extra == "dev"',
]
ALL = {"numpy": "2.4.6", "torch": "2.13.0+cpu", "mobius-onnx": "0.1.0", "xllamacpp": "2026.10.11549"}


def rows(**found: str | None) -> dict[str, str]:
    """Name -> what is said of it; underscores in ``found`` stand for hyphens."""
    versions = ALL | {name.replace("_", "-"): value for name, value in found.items()}
    lines = doctor(requirements(LINES, versions.get)).splitlines()
    return dict(line.strip().split("  ", 1) for line in lines if line.startswith("  "))


def said(**found: str | None) -> dict[str, str]:
    return {name: text.strip() for name, text in rows(**found).items()}


def test_all_is_there():
    out = said()
    assert {out[name] for name in CHECKED} == {"ready"}
    assert out["torch"] == "2.13.0+cpu" and "pytest" not in out and "adadim-edge" not in out
    assert out["onnxruntime+adadim"] == "ready"
    assert out["gguf-adadim"] == "ready to be written; no stock program runs it"


@pytest.mark.parametrize(
    ("found", "row", "text"),
    [
        ({"torch": None}, "torch", "missing"),
        ({"torch": "2.5.1+cpu"}, "torch", "2.5.1+cpu, but >=2.6 is needed"),
        ({"torch": "2.10.0"}, "torch", "2.10.0"),
        ({"mobius_onnx": "0.2"}, "mobius-onnx", "0.2, but <0.2,>=0.1 is needed"),
        ({"xllamacpp": "2026.10.11550"}, "xllamacpp", "2026.10.11550, but ==2026.10.11549 is needed"),
        (
            {"torch": None},
            "quantize, run, sensitivity, imatrix, finetune, convert",
            "needs torch; pip install 'adadim-edge[torch]'",
        ),
        ({"torch": None}, "export onnx, bundle DIR", "ready"),
        (
            {"torch": None, "xllamacpp": None},
            "verify, eval, compare, check-architecture",
            "needs torch, xllamacpp; pip install 'adadim-edge[torch,runtimes]'",
        ),
        (
            {"numpy": "1.26"},
            "export gguf, bundle FILE.gguf, bundle verify, inspect, methods, completion",
            "needs numpy; pip install adadim-edge",
        ),
        ({"mobius_onnx": None}, "onnxruntime", "needs mobius-onnx; pip install 'adadim-edge[onnx]'"),
        (
            {"xllamacpp": None},
            "llama.cpp",
            "ready to be written; to run it here: needs xllamacpp; pip install 'adadim-edge[runtimes]'",
        ),
    ],
)
def test_what_is_not_there_and_what_brings_it(found, row, text):
    assert said(**found)[row] == text


def test_every_command_and_target_is_spoken_of():
    words = {word for row in CHECKED for word in shlex.split(row.replace(",", " "))}
    assert {command.split()[0] for command in COMMANDS} - {"doctor"} <= words
    assert list(CHECKED_TARGETS) and set(CHECKED_TARGETS) == set(TARGETS)
    assert build_parser().parse_args(["doctor"]).command == "doctor"


def test_the_package_as_it_is_installed(capsys, monkeypatch):
    names = [item.name for item in requirements()]
    assert names[0] == "numpy" and {"torch", "onnx", "xllamacpp"} <= set(names)
    assert main(["doctor"]) == 0
    assert "native library of onnxruntime+adadim" in capsys.readouterr().out
    monkeypatch.setattr("exporter.onnx.library.LIBRARY", "libnone.so")
    assert main(["doctor"]) == 0
    assert "tools/apt-packages.sh && make native" in capsys.readouterr().out
