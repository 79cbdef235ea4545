"""``adadim bench``: its options, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exporter.cli.parser import OneLineParser, Subparsers, add_force, command
from exporter.cli.values import file_path, positive, sides

BENCH_EXAMPLE = "adadim bench kernel --json kernel.json"


def add_bench(commands: Subparsers) -> None:
    """``adadim bench kernel``."""
    kinds = command(commands, "bench", "time parts of a runtime", BENCH_EXAMPLE).add_subparsers(dest="kind", required=True)
    _add_options(
        command(
            kinds,
            "kernel",
            "time the kernels of MatMulAdaDim and MatMulLevels beside onnxruntime's own MatMulNBits",
            BENCH_EXAMPLE,
        )
    )


def _add_options(parser: OneLineParser) -> None:
    parser.add_argument("--json", type=file_path, metavar="FILE", help="write the rows here (default: none)")
    add_force(parser)
    parser.add_argument(
        "--shape",
        dest="shapes",
        type=sides,
        action="append",
        metavar="KxN",
        help="time this shape; may be repeated (default: 4 of them)",
    )
    parser.add_argument(
        "--threads", type=positive, action="append", metavar="N", help="so many threads; may be repeated (default: 1, then 2)"
    )


def bench_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each shape, number of threads and number of rows: how many times as fast as MatMulNBits."""
    variants = list(dict.fromkeys((row["grid"], row["bits"], row["axis"]) for row in rows))
    head = "  ".join(f"{f'{grid}{bits} {axis}':>13}" for grid, bits, axis in variants)
    lines = [f"{'K x N':>12} threads rows  MatMulNBits  {head}"]
    cells: dict[tuple[int, ...], dict[tuple[str, int, str], dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["K"], row["N"], row["threads"], row["rows"]), {})[row["grid"], row["bits"], row["axis"]] = row
    for (k, n, threads, count), cell in cells.items():
        base = next(iter(cell.values()))["matmulnbits_seconds"]
        ratios = "  ".join(f"{cell[variant]['ratio']:13.2f}" for variant in variants)
        lines.append(f"{f'{k} x {n}':>12} {threads:7} {count:4} {base * 1e6:9.0f} us  {ratios}")
    return "\n".join(lines)
