"""A newcomer's mistakes: something of another kind, a folder too high or too low, a word misspelt. The error says what to run."""

from __future__ import annotations

import re
import shlex
from itertools import product
from pathlib import Path

import pytest

from exporter.cli.main import main
from exporter.cli.options import build_parser
from quantize.kinds import ACCEPTED, MAKE, NEXT, Kind, Wanted, kind_of, mistaken

HOLDS = {  # by which a kind is known
    Kind.MODEL: {"config.json": b"{}", "model.safetensors": b""},
    Kind.GGUF: b"GGUF\3\0\0\0",
    Kind.ONNX: {"model.onnx": b"", "genai_config.json": b"{}"},
    Kind.STORE: {"plan.json": b"{}"},
    Kind.BUNDLE: {"manifest.json": b"{}", "SHA256SUMS": b"", "verify_bundle.py": b""},
    Kind.ZIP: b"PK\3\4",
}
COMMANDS = [  # the thing in question is {}
    ("quantize {} --out o", Wanted.SOURCE),
    ("run {} --out o", Wanted.SOURCE),
    ("sensitivity {} --out o", Wanted.SOURCE),
    ("finetune {} --out o", Wanted.SOURCE),
    ("imatrix {} --out o", Wanted.SOURCE),
    ("eval a.gguf --source {}", Wanted.SOURCE),
    ("export gguf {} --out o", Wanted.STORE),
    ("export onnx {} --out o", Wanted.STORE),
    ("bundle {} --platform web --out o", Wanted.FILE),
    ("bundle verify {}", Wanted.BUNDLE),
]
MISTAKES = [(command, wanted, kind) for command, wanted in COMMANDS for kind in Kind if kind not in ACCEPTED[wanted]]


def put(path: Path, kind: Kind) -> Path:
    held = HOLDS[kind]
    if isinstance(held, bytes):
        path.write_bytes(held)
    else:
        path.mkdir(parents=True)
        for name, data in held.items():
            (path / name).write_bytes(data)
    return path


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said, in one line."""
    try:
        code = main(list(words))
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    line, rest = capsys.readouterr().err.split("\n", 1)
    assert rest == ""
    return line


@pytest.mark.parametrize(("command", "wanted", "kind"), MISTAKES)
def test_another_kind_and_what_leads_from_it(tmp_path, monkeypatch, capsys, command, wanted, kind):
    monkeypatch.chdir(tmp_path)
    put(Path("my thing"), kind)
    said = error(capsys, *(word.format("my thing") for word in command.split()))
    assert said == f"adadim: error: my thing: is {kind}, not {wanted}; {NEXT[kind, wanted].format(repr('my thing'))}"


@pytest.mark.parametrize(("kind", "wanted"), [pair for pair in product(Kind, Wanted) if pair[0] not in ACCEPTED[pair[1]]])
def test_every_mistake_is_foreseen(tmp_path, kind, wanted):
    path = put(tmp_path / "thing", kind)
    assert kind_of(path) == kind
    assert str(path) in mistaken(path, wanted)


@pytest.mark.parametrize("advice", sorted({*NEXT.values(), *MAKE.values()}))
def test_the_commands_that_are_named_are_commands(advice):
    for found in re.findall(r"adadim [^;,(]+", advice):
        args = build_parser().parse_args(shlex.split(found.format("thing"))[1:])
        assert args.command


@pytest.mark.parametrize(
    ("command", "kind", "inside"),
    [
        ("export gguf out --out o", Kind.STORE, "out/llama.cpp/store"),
        ("inspect out", Kind.GGUF, "out/llama.cpp/model.gguf"),
        ("inspect out/llama.cpp", Kind.GGUF, "out/llama.cpp/model.gguf"),
        ("bundle out --platform web --out o", Kind.ONNX, "out/onnxruntime/onnx"),
        ("quantize out --out o", Kind.MODEL, "out/snapshots/1f2e"),
    ],
)
def test_a_folder_too_high(tmp_path, monkeypatch, capsys, command, kind, inside):
    monkeypatch.chdir(tmp_path)
    Path(inside).parent.mkdir(parents=True)
    put(Path(inside), kind)
    assert error(capsys, *command.split()).endswith(f"; name that: {inside}")


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("export gguf none --out o", "none: not there; make one: adadim quantize MODEL --out STORE"),
        ("inspect none", "none: not there; write one: adadim export gguf STORE --out model.gguf"),
        ("bundle none --platform web --out o", "none: not there; write one: adadim export gguf"),
        (
            "bundle notes.txt --platform web --out o",
            "notes.txt: is not a GGUF file or an ONNX folder; write one: adadim export gguf",
        ),
        ("quantize notes.txt --out o", "notes.txt: is not a Hugging Face directory or a GGUF file; name the folder"),
        ("quantise model --out o", "invalid choice: 'quantise'"),
        ("quantise model --out o", "; perhaps quantize is meant; see adadim --help"),
        ("export guff store --out o", "; perhaps gguf is meant; see adadim export --help"),
        ("quantize model --out o --target onnxrutime", "; perhaps onnxruntime is meant; see adadim quantize --help"),
        (
            "quantize model --out o --tagret llama.cpp",
            "adadim quantize: error: unrecognized arguments: --tagret llama.cpp; perhaps",
        ),
        ("quantize model --out o --tagret llama.cpp", "; perhaps --target is meant; see adadim quantize --help"),
        ("inspect a b", "adadim inspect: error: unrecognized arguments: b; see adadim inspect --help"),
        ("frobnicate", "'completion'); see adadim --help"),
    ],
)
def test_what_is_not_there_or_misspelt(tmp_path, monkeypatch, capsys, command, part):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("notes")
    assert part in error(capsys, *command.split())
