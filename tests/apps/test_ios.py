"""The iOS sample's sources parse; no Swift compiler is to be had here (docs/evidence/clients.md says what that leaves open)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tree_sitter_kotlin
import tree_sitter_swift
from tree_sitter import Language, Node, Parser

APPS = Path(__file__).parent.parent.parent / "apps"
SWIFT = sorted((APPS / "ios").rglob("*.swift"))
GRADLE = sorted((APPS / "android").rglob("*.gradle.kts"))  # the other Kotlin files are compiled


def relative(path: Path) -> str:
    return path.relative_to(APPS).as_posix()


def misread(node: Node) -> Iterator[str]:
    """What the grammar has no place for."""
    if node.is_error or node.is_missing:
        yield f"line {node.start_point.row + 1}: {node.text!r}"
    for child in node.children:
        yield from misread(child)


def test_the_sources_are_found():
    assert len(SWIFT) == 7 and len(GRADLE) == 3


@pytest.mark.parametrize("path", [*SWIFT, *GRADLE], ids=relative)
def test_it_parses(path):
    grammar = tree_sitter_swift if path.suffix == ".swift" else tree_sitter_kotlin
    tree = Parser(Language(grammar.language())).parse(path.read_bytes())
    assert not list(misread(tree.root_node))


# What would load onnxruntime, which then reports to its maker, and what has to be said before.
SWITCHED_OFF = {
    "ios/Sources/AdaDimSample/OnnxModel.swift": ('setenv("ORT_DISABLE_TELEMETRY", "1", 1)', r"try ORT\w+\("),
    "android/app/src/main/kotlin/ai/adadim/sample/MainActivity.kt": (
        'Os.setenv("ORT_DISABLE_TELEMETRY", "1", true)',
        r"\bload\(\)",
    ),
    "node/src/onnx.ts": ('process.env.ORT_DISABLE_TELEMETRY = "1"', r'"onnxruntime-node"'),
}
LOADS_IT = re.compile(r"\bORTEnv\(|= openModel\(|\"onnxruntime-node\"")


@pytest.mark.parametrize("path", SWITCHED_OFF)
def test_telemetry_is_off_before_onnxruntime_is_loaded(path):
    text = (APPS / path).read_text(encoding="utf-8")
    switch, load = SWITCHED_OFF[path]
    first = re.search(load, text)
    assert first is not None and switch in text[: first.start()]


def test_nobody_else_loads_onnxruntime():
    files = [path for part in ("ios", "android/app/src", "node/src") for path in (APPS / part).rglob("*.*") if path.is_file()]
    assert {relative(path) for path in files if LOADS_IT.search(path.read_text(encoding="utf-8"))} == SWITCHED_OFF.keys()


def test_a_missing_brace_is_seen():
    text = SWIFT[0].read_text(encoding="utf-8").rstrip().removesuffix(")").removesuffix("}")
    assert list(misread(Parser(Language(tree_sitter_swift.language())).parse(text.encode()).root_node))
