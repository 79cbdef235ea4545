#!/usr/bin/env python3
"""Write docs/reference/options.md and targets.md from the parser, TARGETS and GRIDS; a test compares them.

usage: make_reference.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from exporter.cli.options import build_parser
from exporter.cli.values import BITS
from exporter.targets import TARGETS, GgufTarget, OnnxTarget
from quantize.errors import ConfigError
from quantize.grids import GRIDS, make_grid
from quantize.grids.int_affine import BITS as INT_BITS
from quantize.grids.levels import Levels
from quantize.types import Axis, Grid

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
MADE = "<!-- Made by tools/make_reference.py; `make docs` makes it anew. -->"
PLAIN = ("help", "version")  # what every parser has
RUNS_IN = {
    "llama.cpp": "any llama.cpp, and what is built on it: wllama, node-llama-cpp.",
    "gguf-adadim": "no stock program: it is for readers of [its format](gguf-adadim.md). A stock loader refuses it by name.",
    "onnxruntime": "stock onnxruntime from 1.27 on, and onnxruntime-genai ([why 1.27](bundle.md#runtimes)). "
    "Per-IC layers take the split form: exact, more nodes, slower.",
    "onnxruntime+adadim": "the same. Its operators, [MatMulAdaDim](matmul-adadim.md) and [MatMulLevels](matmul-levels.md), bring "
    "a portable body, exact but slow. With the [native library](custom-op.md) they are fast.",
    "onnxruntime-w8a8": "stock onnxruntime, and programs that want [static scales of activations](static-activations.md) in "
    "QuantizeLinear and DequantizeLinear.",
}
UNLIKE = {  # what the grids do not tell
    "onnxruntime": "3 bits ride in 4.",
    "onnxruntime-w8a8": "8 by default, symmetric, a channel a group: those read 8 bits. Others are as on `onnxruntime`.",
}


def options_page() -> str:
    """Every command with its arguments."""
    lines = [
        "# Commands and options",
        MADE,
        "`adadim COMMAND --help` says the same. An output that exists is refused unless `--force` is given.",
    ]
    for name, parser in commands(build_parser()):
        lines += [f"## `adadim {name}`", f"{_cell(parser.description or '')}", *_arguments(parser), *_example(parser)]
    return "\n\n".join(lines) + "\n"


def commands(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Those below ``parser`` that do something: a name, and the parser of its arguments."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield prefix, parser
    for action in below:
        names: dict[argparse.ArgumentParser, str] = {}  # the first of each: others are aliases
        for name, nested in action.choices.items():
            names.setdefault(nested, name)
        for nested, name in names.items():
            yield from commands(nested, f"{prefix} {name}".strip())


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table for each group."""
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.dest not in PLAIN and action.help != argparse.SUPPRESS]
        rows = [(_spelled(action), _cell(formatter._expand_help(action)) if action.help else "") for action in shown]
        if rows:
            named = group.title not in ("positional arguments", "options")
            yield from [f"{group.title}:"[:1].upper() + f"{group.title}:"[1:]] * named
            yield _table(("argument" if not shown[0].option_strings else "option", "meaning"), rows)


def _spelled(action: argparse.Action) -> str:
    """The way it is written, with what it takes."""
    metavar = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    value = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    if not action.option_strings:
        return f"`{_cell(value)}`{'…' if action.nargs in ('+', '*') else ''}"
    takes = "" if action.nargs == 0 else f" {value}"
    return f"`{', '.join(action.option_strings)}{_cell(takes)}`{', required' if action.required else ''}"


def _example(parser: argparse.ArgumentParser) -> list[str]:
    example = (parser.epilog or "").partition("example:")[2].strip()
    return [f"```console\n$ {example}\n```"] if example else []


def _cell(text: str) -> str:
    """For a table: one line, no bar that would end the cell, no tag."""
    return " ".join(text.split(" ")).replace("\n", " ").replace("|", r"\|").replace("<", "&lt;")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def targets_page() -> str:
    """Every target with what it holds, and every grid."""
    lines = [
        "# Targets and grids",
        MADE,
        "A *target* is the runtime that a file is for (`--target`). A *grid* is the set of values that a weight may take there "
        "(`--grid`). *Per-OC*: the weights that share a scale lie in one output channel. *Per-IC*: in one input channel.",
    ]
    for name, target in TARGETS.items():
        lines += [f"## `{name}`", f"Runs in {RUNS_IN[name]}", _table(("", ""), _facts(target))]
    return "\n\n".join([*lines, "## Grids", *_grids()]) + "\n"


def _facts(target: GgufTarget | OnnxTarget) -> list[tuple[str, str]]:
    widths = {bits: _default(target, bits) for bits in BITS}
    held = ", ".join(f"{bits}: `{name}`" if name != "int" else str(bits) for bits, name in widths.items() if name)
    return [
        ("per-OC", _held(target, Axis.PER_OC)),
        ("per-IC", _held(target, Axis.PER_IC)),
        ("`--bits`", " ".join([held + ".", *([UNLIKE[target.name]] if target.name in UNLIKE else [])])),
        ("groups, unless `--group-size` or the grid says otherwise", _groups(target)),
    ]


def _groups(target: GgufTarget | OnnxTarget) -> str:
    other = f"; {target.default_group_size} where other bits are asked for"
    return f"a channel{other}" if target.activations else str(target.default_group_size)


def _default(target: GgufTarget | OnnxTarget, bits: int) -> str | None:
    """The grid that ``--bits`` alone means, None if the width is refused."""
    try:
        name = target.grid_name(bits)
        known = GRIDS[name]
        make_grid(name, bits, target.default_group_size if isinstance(known, type) else known.group_size)
    except ConfigError:
        return None
    return name


def _held(target: GgufTarget | OnnxTarget, axis: Axis) -> str:
    names = [f"`{name}`" for name, grid in _each_grid().items() if target.lacks(grid, axis) is None]
    return ", ".join(names) or "not storable"


def _each_grid() -> Mapping[str, Grid]:
    return {name: make_grid(name, 4, 32) if isinstance(grid, type) else grid for name, grid in GRIDS.items()}


def _grids() -> Iterator[str]:
    rows = []
    for name, grid in _each_grid().items():
        if isinstance(grid, Levels):
            kind = "levels of single weights" if grid.dims == 1 else "levels of pairs of weights"
            rows.append((f"`{name}`", str(grid.bits), f"{grid.bits} and a scale's", "a channel, or `--group-size`", "", kind))
        elif name != "int":
            kind = "no zero points" if grid.symmetric else "with offsets"
            rows.append(
                (f"`{name}`", str(grid.bits), f"{grid.bits_per_weight:g}", str(grid.group_size), str(grid.block_size), kind)
            )
    yield _table(("grid", "bits", "bits a weight", "weights that share a scale", "block", ""), rows)
    yield (
        "On the target `llama.cpp` a linear's input channels have to be a multiple of the block. Where they are not, the plan is "
        "refused. With `--allow-fallback` the next larger block of 32 is taken, and listed."
    )
    yield (
        f"`int`, the grid of the ONNX targets, has {', '.join(map(str, INT_BITS))} bits, groups of `--group-size` and scales of "
        "`--scale-dtype`. Each group has a zero point, unless `--symmetric` is given."
    )


PAGES = {"options.md": options_page, "targets.md": targets_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")
