"""The iOS sample's sources parse; no Swift compiler is to be had here (docs/apps.md says what that leaves open)."""

from __future__ import annotations

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


def test_a_missing_brace_is_seen():
    text = SWIFT[0].read_text(encoding="utf-8").rstrip().removesuffix(")").removesuffix("}")
    assert list(misread(Parser(Language(tree_sitter_swift.language())).parse(text.encode()).root_node))
