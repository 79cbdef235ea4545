from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.cli.spelling import as_option
from quantize.errors import LINE, SHOWN, AdaDimError, CheckpointError, ConfigError, asked, shown, spelling

HOSTILE = {
    "colour": ("\x1b[31mred", "\\x1b[31mred"),
    "bidi": ("\u202egnp.exe", "\\u202egnp.exe"),
    "lines": ("one\n\ttwo\r\nthree", "one two three"),
    "a surrogate": ("mod\udce9l", "mod\\udce9l"),
    "a zero": ("a\x00b", "a\\x00b"),
    "letters": ("Übergrößenträger 東京", "Übergrößenträger 東京"),
}


@pytest.mark.parametrize(("text", "expected"), HOSTILE.values(), ids=HOSTILE)
def test_a_message_is_one_clean_line(text, expected):
    assert str(CheckpointError(text)) == expected
    assert shown(text) == expected
    assert str(CheckpointError(text)).encode()


def test_what_is_too_long_loses_its_middle():
    message = str(AdaDimError(f"model.gguf: {'x' * 10**6}; download it again"))
    assert len(message) <= LINE + 3 and message.startswith("model.gguf: xxx") and message.endswith("; download it again")


@pytest.mark.parametrize(
    "value", ["A" * 10**6, ["A" * 10**6] * 1000, {"key": list(range(10**6))}, 10**4000, ValueError("x" * 9999)]
)
def test_a_value_takes_no_more_than_its_share(value):
    assert 0 < len(shown(value)) <= SHOWN + 3


def test_a_value_that_is_no_text_reads_as_python_writes_it():
    assert [shown(value) for value in (None, True, 1.5, ["a", 1], "it is")] == ["None", "True", "1.5", "['a', 1]", "it is"]


@pytest.mark.parametrize(
    ("marked", "python", "option"),
    [
        (asked("group_size"), "group_size", "--group-size"),
        (asked("group_size", 0, "channel"), "group_size=0", "--group-size channel"),
        (asked("allow_fallback", True), "allow_fallback=True", "--allow-fallback"),
        (asked("embedding", "int4"), "embedding='int4'", "--embedding int4"),
        (asked("transforms", (), "none"), "transforms=()", "--transforms none"),
        (asked("out", "a\x1b\ue002b"), "out='a\\x1b\\ue002b'", "--out a\\x1b\\ue002b"),
    ],
)
def test_an_option_is_spelled_for_whoever_reads_it(marked, python, option):
    error = ConfigError(f"m: no; give {marked}, or not")
    assert str(error) == f"m: no; give {python}, or not"
    with spelling(as_option):
        assert str(error) == f"m: no; give {option}, or not"
        assert f"{ConfigError(f'n: {error}')}" == f"n: m: no; give {option}, or not"
    assert str(error) == f"m: no; give {python}, or not"


SCRIPTS = (
    "quantize/hub.py",
    "quantize/template/converter.py",
    "quantize/template/onnx_adapter.py",
    "exporter/bundle/verify_bundle.py",
)


def test_the_library_spells_no_option_of_the_command_line():
    """But in what is for a shell anyway: whole commands, and scripts that run by themselves."""
    root, found = Path(__file__).parents[2], list[str]()
    for path in (path for package in ("quantize", "exporter", "runtime_checks") for path in (root / package).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith("exporter/cli/") or name in SCRIPTS:
            continue
        for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            if re.search(r"(?<![\w(-])--[a-z][a-z-]+", text) and not re.search(r"\b(adadim|hf|llama-[\w-]+|python3) ", text):
                found.append(f"{name}: {text}")
    assert not found


def texts(tree: ast.Module) -> Iterator[str]:
    """Every string of a module that is no docstring, one that is put together from parts as a whole."""
    skipped = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list) and prose(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part for part in node.values if isinstance(part, ast.Constant)]
            skipped |= {id(part) for part in parts}
            yield "{}".join(str(part.value) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def prose(node: ast.AST) -> bool:
    return isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
