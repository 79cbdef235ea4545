#!/usr/bin/env python3
"""Every method side by side, at several widths: what its file is worth, how large it is, and what making it takes.

A row for each word of ``--method`` and each width, one after the other. The quantizer is a process of its own, whose time and
largest memory are told. Quality is that of the file's decoded weights against the source, on the second half of each chunk of
TEXT. Rows are kept in OUT.json beside OUT as they are made, so a run that was stopped goes on. What is refused is a row too.

usage: compare_systems.py SOURCE TEXT --calibration TEXT2 --out OUT.md [--bits 2,3,4] [--target T] [--only WORD,WORD]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exporter.cli.advice import target_named
from exporter.cli.methods import methods_report
from exporter.cli.values import positive, widths
from exporter.targets import TARGETS
from quantize.store.outputs import new_file

COMMAND = [sys.executable, "-m", "exporter.cli.main"]
HEAD = (
    "| method | bits | KL, nats/token | perplexity | same favourite | bits/weight | file, MB | seconds | memory, MB | targets |"
)
MB = 1e6

Row = Mapping[str, Any]


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("text", type=Path, help="what is measured on")
    parser.add_argument("--calibration", required=True, help="another text")
    parser.add_argument("--calibration-tokens", type=positive, help="(default: the effort's)")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--bits", type=widths, default=(2, 3, 4), help="(default: 2,3,4)")
    parser.add_argument("--target", type=target_named, choices=tuple(TARGETS), default="onnxruntime+adadim")
    parser.add_argument("--only", type=lambda word: tuple(word.split(",")), help="methods (default: every one)")
    parser.add_argument("--chunks", type=positive, default=16, help="of 512 tokens (default: 16)")
    return parser.parse_args()


def cases(args: argparse.Namespace) -> list[tuple[Row, int]]:
    """What ``adadim methods`` says of a method, and a width, for every row to be made."""
    methods = methods_report()["methods"]
    wanted = [row for row in methods if args.only is None or row["name"] in args.only]
    return [(row, bits) for row in wanted for bits in args.bits]


def timed(*words: object) -> tuple[float, float]:
    """Seconds and bytes of memory that one command takes at the most. Raises RuntimeError with what it says if it fails."""
    start = time.perf_counter()
    child = subprocess.Popen(
        [*COMMAND, *map(str, words), "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    with child.stderr as stream:
        said = stream.read().strip()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(said.splitlines()[-1].removeprefix("adadim: error: ") if said else f"ended with {child.returncode}")
    return time.perf_counter() - start, used.ru_maxrss * 1024.0


def measured(args: argparse.Namespace, method: Row, bits: int) -> dict[str, Any]:
    """One row. What is refused, or fails, is its ``error``."""
    kind = TARGETS[args.target].writer
    more = [] if args.calibration_tokens is None else ["--calibration-tokens", args.calibration_tokens]
    with TemporaryDirectory() as name:
        folder = Path(name)
        store, file, report = folder / "store", folder / ("model.gguf" if kind == "gguf" else "onnx"), folder / "eval.json"
        options = ["--target", args.target, "--method", method["name"], "--bits", bits, "--calibration", args.calibration, *more]
        try:
            seconds, memory = timed("quantize", args.source, "--out", store, *options)
            timed("export", kind, store, "--out", file)
            against = ["--source", args.source, "--text", args.text, "--chunks", args.chunks, "--weights-only"]
            timed("eval", file, *against, "--json", report)
        except RuntimeError as error:
            return {"error": str(error).replace(name, "")}
        found = json.loads(report.read_text())
        inspected = subprocess.run([*COMMAND, "inspect", str(file), "--json"], check=True, capture_output=True, text=True)
        totals = json.loads(inspected.stdout)["totals"]
    kept = {key: found[key] for key in ("kld", "ppl", "source_ppl", "top1", "bytes")}
    return {**kept, "bits_per_weight": totals["bits_per_weight"], "seconds": seconds, "memory": memory}


def line(method: Row, bits: int, row: Row) -> str:
    """Of the table."""
    targets = ", ".join(method["targets"])
    if "error" in row:
        return f"| {method['name']} | {bits} | {row['error'].replace('|', '/')} | | | | | | | {targets} |"
    return (
        f"| {method['name']} | {bits} | {row['kld']:.4f} | {row['ppl']:.3f} | {row['top1']:.3f} | {row['bits_per_weight']:.2f} | "
        f"{row['bytes'] / MB:.1f} | {row['seconds']:.0f} | {row['memory'] / MB:.0f} | {targets} |"
    )


def page(args: argparse.Namespace, rows: Mapping[str, Row], command: str) -> str:
    """The document, with the command that its numbers come from, and what of each system is not its paper's."""
    made = [(method, bits, rows[key_of(method, bits)]) for method, bits in cases(args) if key_of(method, bits) in rows]
    source = next((row["source_ppl"] for _, _, row in made if "error" not in row), float("nan"))
    table = [HEAD, "|" + "---|" * (HEAD.count("|") - 1), *(line(*one) for one in made)]
    apart = {method["name"]: [method[key] for key in ("ours", "simulated") if method[key]] for method, _, _ in made}
    notes = [f"- `{name}`: {'; '.join(said)}." for name, said in apart.items() if said]
    told = f"Target `{args.target}`. The source's perplexity is {source:.3f} on the same {args.chunks} chunks of 512 tokens."
    ours = ["", "What is ours and not the paper's, or simulated:", "", *notes] if notes else []
    return "\n".join(["# Methods side by side", "", f"    {command}", "", told, "", *table, *ours, ""])


def key_of(method: Row, bits: int) -> str:
    """Of a row."""
    return f"{method['name']} {bits}"


def main(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Make the rows that are missing, one at a time, and the page."""
    kept = args.out.with_name(args.out.name + ".json")
    asked = {key: str(getattr(args, key)) for key in ("source", "text", "calibration", "calibration_tokens", "target", "chunks")}
    if args.out.exists() and not kept.exists():
        raise SystemExit(f"{args.out}: is there already, and is none of this tool's; name another --out")
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"asked": asked, "rows": {}}
    if known["asked"] != asked:
        raise SystemExit(f"{kept}: has rows of another command, {known['asked']}; name another --out, or remove it")
    command = shlex.join(["python", "tools/compare_systems.py", *words])
    for method, bits in cases(args):
        key = key_of(method, bits)
        if key not in known["rows"]:
            known["rows"][key] = measured(args, method, bits)
            print(line(method, bits, known["rows"][key]), flush=True)
            write(kept, json.dumps(known, indent=1))
    write(args.out, page(args, known["rows"], command))


def write(path: Path, text: str) -> None:
    """Whole, or not at all."""
    with new_file(path, force=True) as file:
        file.write(text.encode())


if __name__ == "__main__":
    main(arguments(), sys.argv[1:])
