"""What ``adadim compare`` found, as a table on a terminal and as a page with a plot."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from runtime_checks.report.advice import CLOSE, best_for_its_size, caveats, in_numbers
from runtime_checks.report.data import Measured, Subject, shorten
from runtime_checks.report.page import Answer, Block, Number, Samples, Section, Table, Text, page
from runtime_checks.report.pareto import Point, pareto_chart

Report = dict[str, Any]
WIDTH = 100  # of the table on a terminal, in characters
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {  # key of a row -> heading, and how a value is written
    "bytes": ("MB", lambda value: f"{value / 1e6:,.1f}"),
    "bits_per_weight": ("bits/w", lambda value: f"{value:.2f}"),
    "kld": ("KL div.", lambda value: f"{value:.4f}"),
    "kld_p99": ("99th %", lambda value: f"{value:.3f}"),
    "top1": ("top-1", lambda value: f"{value:.3f}"),
    "ppl": ("perplexity", lambda value: f"{value:,.2f}"),
    "tokens_per_s": ("tokens/s", lambda value: f"{value:,.1f}"),
    "first_difference": ("differs at", lambda value: "nowhere" if value is None else str(value)),
}
BADGE = "best for its size"
RULE = f"Best for its size: the smallest file whose mean KL divergence from the source is at most {CLOSE} nats a token."
COMMAND = "adadim compare FILE... --source MODEL --text FILE --html compare.html"
NOTES = (
    "bits/w: of the linear layers. KL div.: from the source's predictions, in nats a token, the mean and the 99th percentile. "
    "top-1: how often both expect the same token. differs at: the first greedy token, counted from 0, that is not the source's."
)


def compare_table(report: Report) -> str:
    """A row for each file, in at most WIDTH columns; then grids, and what was said."""
    rows = report["files"]
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    cells = [[COLUMNS[key][0] for key in keys]]
    cells += [[COLUMNS[key][1](row[key]) if key in row else "" for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = min(WIDTH - sum(width + 2 for width in widths), max(len(row["name"]) for row in rows))
    names = ["file", *(_shortened(row["name"], room) for row in rows)]
    lines = []
    for name, line, row in zip(names, cells, [{}, *rows], strict=True):
        numbers = "".join(f"  {cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        lines += _wrapped(name, row["error"]) if "error" in row else [f"{name:{room}}{numbers}"]
    return "\n".join([*lines, *_details(report, keys)])


def _details(report: Report, keys: Sequence[str]) -> list[str]:
    lines = ["", *textwrap.wrap(f"{_measured_on(report)} {NOTES}", WIDTH)] if "kld" in keys else []
    lines += _block("grids, and how many matrices each", ((row["name"], _grids(row["grids"])) for row in _whole(report)))
    if report.get("sample") is not None:
        said = [("source", report["sample"]), *((row["name"], row["sample"]) for row in _whole(report))]
        lines += _block(f"{report['prompt']!r} goes on", said)
    return lines


def _whole(report: Report) -> list[Report]:
    return [row for row in report["files"] if "error" not in row]


def _grids(grids: dict[str, int]) -> str:
    return ", ".join(f"{count} {grid}" for grid, count in grids.items())


def _block(title: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    wrapped = [line for name, text in rows for line in _wrapped(f"  {name}", text)]
    return ["", title, *wrapped] if wrapped else []


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(f"{name}: {' '.join(text.split())}", WIDTH, subsequent_indent="    ", drop_whitespace=True)


def _shortened(name: str, room: int) -> str:
    """The end of a path tells files apart."""
    return name if len(name) <= room else "…" + name[len(name) - room + 1 :]


def _measured_on(report: Report) -> str:
    return f"Measured on {report['chunks']} chunks of {report['text']}, against {report['source']}."


def compare_page(report: Report) -> bytes:
    """A file for a browser: which is best for its size, the plot, the table, and the samples side by side.

    The same report gives the same bytes.
    """
    rows = _whole(report)
    names = _short_names(rows)
    measured = [(name, _measured(row)) for name, row in zip(names, rows, strict=True) if "kld" in row]
    answer = _answer(measured)
    sections = []
    if len(measured) > 1:
        points = [Point(name, found.size, found.kld, badge=BADGE * (name == answer.chosen)) for name, found in measured]
        sections.append(Section("quality", "Quality against size", [pareto_chart(points)]))
    files: list[Block] = []
    if rows:
        grids = [(name, _grids(row["grids"])) for name, row in zip(names, rows, strict=True)]
        files = [_numbers(rows), Text(NOTES, small=True), Table("Grids", ("file", "matrices"), grids)]
    if measured:
        files.append(Text(f"{RULE} {_measured_on(report)}", small=True))
    sections.append(Section("files", "The files", files))
    if report.get("sample") is not None:
        said = [
            ("source", "", report["sample"]),
            *((name, _differs(row), row["sample"]) for name, row in zip(names, rows, strict=True)),
        ]
        sections.append(Section("samples", f"{report['prompt']!r} goes on", [Samples(said)]))
    failed = [(row["name"], row["error"]) for row in report["files"] if "error" in row]
    if failed:
        sections.append(Section("errors", "Not measured", [Table("What was not measured", ("file", "why"), failed)]))
    return page(f"{len(report['files'])} files compared", answer, sections)


def _answer(measured: Sequence[tuple[str, Measured]]) -> Answer:
    """RULE's; a comparison knows no checks, so it sends nothing out."""
    if not measured:
        return Answer("Cannot say which is good", "nothing was measured against a source.", "", (COMMAND,))
    name, found = best_for_its_size(measured)
    numbers = f"({in_numbers(found)})"
    if found.kld > CLOSE:
        head, text = "None is close to the source", f"the closest is {name} {numbers}, and at most {CLOSE} is close."
        return Answer(head, text + caveats(found), "bad")
    text = f"it is the smallest file that is close to the source {numbers}. Whether its bytes are right, adadim verify says."
    return Answer(f"Best for its size is {name}", text + caveats(found), "good", chosen=name)


def _short_names(rows: Sequence[Report]) -> list[str]:
    """The ends of the files' paths that tell them apart."""
    subjects = [Subject(row["name"]) for row in rows]
    shorten(subjects)
    return [subject.name for subject in subjects]


def _measured(row: Report) -> Measured:
    held = {name: row[name] for name in Measured.__dataclass_fields__ if name in row}
    return Measured(size=row["bytes"], **held)


def _numbers(rows: Sequence[Report]) -> Table:
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    cells = [(row["name"], *(Number(COLUMNS[key][1](row[key])) for key in keys)) for row in rows]
    return Table("Files, as they were given", ("file", *(COLUMNS[key][0] for key in keys)), cells)


def _differs(row: Report) -> str:
    place = row["first_difference"]
    return "as the source, token for token" if place is None else f"the source until token {place}"
