"""``adadim methods``: what ``--method`` takes, what options add, what each needs, and where its result can be stored."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from exporter.cli.parser import Subparsers, command
from exporter.cli.spelling import as_option
from exporter.cli.summary import table
from exporter.targets import TARGETS
from quantize.grids import GRIDS, make_grid
from quantize.methods import WORDS, read_word
from quantize.methods.added import ADDED
from quantize.types import Axis, Need, Target

NEEDS = {
    Need.WEIGHTS: "weights",
    Need.IMPORTANCE: "a text or an imatrix",
    Need.HESSIAN: "a text",
    Need.BLOCK: "a text",
    Need.LEARNING: "a text",
    Need.MODEL: "a text, the model in memory about four times",
}


def add_methods(commands: Subparsers) -> None:
    """``adadim methods``."""
    example = "adadim methods --json"
    parser = command(commands, "methods", "list the methods: what each does, needs, and where its result can be stored", example)
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")


def methods_report() -> dict[str, list[dict[str, Any]]]:
    """``methods`` by the word after ``--method``; ``options`` that add a step to any.

    ``ours``: what of a system is not its paper's. ``simulated``: what no runtime does. "" for nothing.
    """
    held = {axis: [name for name, target in TARGETS.items() if _holds(target, axis)] for axis in Axis}
    methods = []
    for word in WORDS:
        method, axes = read_word(word)
        needs = max(method.needs, Need.IMPORTANCE if len(axes) > 1 else Need.WEIGHTS)
        targets = [
            name
            for name, target in TARGETS.items()
            if any(name in held[axis] for axis in axes)
            and not (method.leaves_parts and target.lacks_parts)
            and not method.lacks_turns(target)
        ]
        kind = f"{method.kind}, {_axes(axes)}"
        paper = method.paper if axes == (Axis.PER_OC,) else f"{method.paper}; AdaDim, arXiv 2309.15531"
        row = {"name": word, "kind": kind, "paper": paper, "needs": NEEDS[needs], "targets": targets}
        methods.append({**row, "ours": method.ours, "simulated": method.simulated})
    options = [
        {"name": as_option(extra.option, extra.word, None), "kind": extra.kind, "paper": extra.paper, "needs": NEEDS[extra.needs]}
        for extra in ADDED
    ]
    return {"methods": methods, "options": options}


def methods_table(report: dict[str, list[dict[str, Any]]]) -> str:
    """Of ``methods_report``."""
    every = len(TARGETS)
    methods = [
        (row["name"], f"{row['kind']} ({row['paper']}); needs {row['needs']}; {_targets(row['targets'], every)}{_apart(row)}")
        for row in report["methods"]
    ]
    options = [(row["name"], f"{row['kind']} ({row['paper']}); needs {row['needs']}") for row in report["options"]]
    return "\n".join([table("--method", methods), table("and with any of them", options)])


def _apart(row: Mapping[str, str]) -> str:
    """What a system's row says more."""
    said = {"ours": row["ours"], "simulated": row["simulated"]}
    return "".join(f"; {word}: {text}" for word, text in said.items() if text)


def _targets(names: list[str], every: int) -> str:
    return "every target" if len(names) == every else ", ".join(names)


def _axes(axes: tuple[Axis, ...]) -> str:
    words = {Axis.PER_OC: "groups per output channel", Axis.PER_IC: "groups per input channel"}
    return "the better axis of each linear" if len(axes) > 1 else words[axes[0]]


def _holds(target: Target, axis: Axis) -> bool:
    """Whether there is a grid of which it holds groups on that axis."""
    grids = [grid for grid in GRIDS.values() if not isinstance(grid, type)]
    grids += [make_grid("int", bits, group) for bits, group in product((2, 4, 8), (32, 128))]
    return any(target.lacks(grid, axis) is None for grid in grids)
