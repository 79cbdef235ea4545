"""What ``adadim compare`` found, as a table on a terminal and as a page with a plot."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from runtime_checks.report_charts import Point, pareto_chart
from runtime_checks.report_page import Block, Number, Samples, Section, Table, Text, page

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
    """A file for a browser: the plot, the table, and the samples side by side. The same report gives the same bytes."""
    rows = _whole(report)
    points = [Point(row["name"], row["bytes"], row["kld"]) for row in rows if "kld" in row]
    files: list[Block] = [pareto_chart(points)] if points else []
    if rows:
        files += [
            _numbers(rows),
            Text(NOTES),
            Table("Grids", ("file", "matrices"), [(row["name"], _grids(row["grids"])) for row in rows]),
        ]
    sections = [Section("files", "Size and quality", files)]
    if report.get("sample") is not None:
        said = [("source", "", report["sample"]), *((row["name"], _differs(row), row["sample"]) for row in rows)]
        sections.append(Section("samples", f"{report['prompt']!r} goes on", [Samples(said)]))
    failed = [(row["name"], row["error"]) for row in report["files"] if "error" in row]
    if failed:
        sections.append(Section("errors", "Not measured", [Table("What was not measured", ("file", "why"), failed)]))
    return page(f"{len(report['files'])} files compared", _measured_on(report) if points else "", sections)


def _numbers(rows: Sequence[Report]) -> Table:
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    cells = [(row["name"], *(Number(COLUMNS[key][1](row[key])) for key in keys)) for row in rows]
    return Table("Files, as they were given", ("file", *(COLUMNS[key][0] for key in keys)), cells)


def _differs(row: Report) -> str:
    place = row["first_difference"]
    return "as the source, token for token" if place is None else f"the source until token {place}"
