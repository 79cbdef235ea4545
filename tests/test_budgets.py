"""Line budgets: 40 for a function without its docstring, 300 for a module, 5 parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FUNCTION_LINES, MODULE_LINES, PARAMETERS = 40, 300, 5
FILES = sorted(path for folder in ("quantize", "exporter", "runtime_checks", "tools") for path in (ROOT / folder).rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def length(function: Function) -> int:
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    assert docstring.end_lineno is not None
    return lines - (docstring.end_lineno - docstring.lineno + 1)


def parameters(function: Function) -> int:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in named)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_budgets(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MODULE_LINES
    too_long = {function.name: length(function) for function in functions(path) if length(function) > FUNCTION_LINES}
    assert not too_long
    too_wide = {function.name: parameters(function) for function in functions(path) if parameters(function) > PARAMETERS}
    assert not too_wide
