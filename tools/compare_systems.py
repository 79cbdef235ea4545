#!/usr/bin/env python3
"""Every method side by side, at several widths: what its file is worth, how large it is, and what making it takes.

A row for each word of ``--method`` and each width, then words with options, one after the other. The quantizer is a process of
its own, whose time and largest memory are told. Quality is that of the file's decoded weights against the source, on the second
half of each chunk of TEXT. Rows are kept in OUT.json beside OUT as they are made: a run that was stopped goes on, and OUT tells
of all of them, whatever ``--only`` made. What is refused is a row too. From the rows follow what pays, and whether what the
papers say holds (``systems_claims.py``).

usage: compare_systems.py SOURCE TEXT --calibration TEXT2 --out OUT.md [--bits 2,3,4] [--target T] [--only ROW]...
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from systems_activations import REAL, ROWS, Activated, activated_table
from systems_activations import line as line_of
from systems_claims import claims_table, what_pays

from exporter.cli.advice import target_named
from exporter.cli.methods import methods_report
from exporter.cli.values import positive, widths
from exporter.targets import TARGETS
from quantize.methods import WORDS, read_word
from quantize.store.outputs import new_file

COMMAND = [sys.executable, "-m", "exporter.cli.main"]
HEAD = (
    "| row | bits | KL, nats/token | perplexity | same favourite | linears, bits | file, bits | file, MB | CPU, s | memory, MB |"
)
MB = 1e6
TOLD = ("kld", "alone", "ppl", "source_ppl", "top1", "bytes")  # of what `adadim eval` says
PLAIN = tuple(word for word in WORDS if not read_word(word).method.axes)  # a rounder and an axis
PAGES = Path(__file__).parent.parent / "docs" / "methods"
ONNX_ALONE = {"--float-columns", "--group-size"}
# Words with options, and the widths of those that are not for all; "{bits}" is the width. Rows go by these names.
COMBINATIONS: tuple[tuple[str, tuple[float, ...]], ...] = (
    *((f"rtn-oc --symmetric --group-size {size}", ()) for size in (64, 128, 256, "channel")),
    ("gptq-oc --transforms norm-gains", ()),
    ("gptq-oc --transforms all", ()),
    ("gptq-oc --float-columns 32", ()),
    ("finequant --rounder gptq", ()),
    ("norm-tweaking --calibration generated", ()),
    ("omniquant --transforms norm-gains", ()),
    ("higgs --rounder gptq", ()),
    ("higgs --grid hg{bits}", (2, 3)),
    ("higgs --rounder gptq --grid hg{bits}", (2, 3)),
    ("quik --float-columns 0", ()),
    ("cmpq", (2.5,)),
)

Row = Mapping[str, Any]


class Case(NamedTuple):
    """A row to be made: ``name`` is what follows ``--method``, ``method`` what ``adadim methods`` says of its first word."""

    name: str
    method: Row
    bits: float

    @property
    def key(self) -> str:
        """Of the row."""
        return f"{self.name} {self.bits:g}"

    @property
    def targets(self) -> list[str]:
        """Those that hold it."""
        held: list[str] = self.method["targets"]
        return [name for name in held if TARGETS[name].writer == "onnx" or not ONNX_ALONE & set(self.name.split())]


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
    parser.add_argument(
        "--only", action="append", metavar="ROW", help="by name, or by name and width; may be repeated (default: every one)"
    )
    parser.add_argument("--chunks", type=positive, default=16, help="of 512 tokens (default: 16)")
    return parser.parse_args()


def every_case(widths: Sequence[float]) -> list[Case]:
    """A width between two others where both are asked for."""
    methods = {row["name"]: row for row in methods_report()["methods"]}
    named: list[tuple[str, tuple[float, ...]]] = [*((word, ()) for word in methods), *COMBINATIONS]
    known = set(widths)
    every = [
        Case(name.format(bits=f"{bits:g}"), methods[name.split()[0]], bits)
        for name, own in named
        for bits in own or widths
        if bits in known or {floor(bits), ceil(bits)} <= known
    ]
    return list({case.key: case for case in every}.values())


def cases(args: argparse.Namespace) -> list[Case | Activated]:
    """The rows to be made. Raises SystemExit for a name of none."""
    every: list[Case | Activated] = [*every_case(args.bits), *ROWS]
    unknown = set(args.only or ()) - {word for case in every for word in (case.name, case.key)}
    if unknown:
        known = ", ".join(dict.fromkeys(case.name for case in every))
        raise SystemExit(f"--only {' --only '.join(sorted(unknown))}: no row of that name; there are {known}")
    return [case for case in every if args.only is None or not {case.name, case.key}.isdisjoint(args.only)]


def timed(*words: object) -> tuple[float, float]:
    """Seconds of all cores and bytes of memory that one command takes. Raises RuntimeError with what it says if it fails."""
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
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024.0


def target_for(args: argparse.Namespace, case: Case | Activated) -> str:
    """Of its file."""
    return case.target if isinstance(case, Activated) else str(args.target)


def measured(args: argparse.Namespace, alike: Sequence[Case | Activated]) -> dict[str, dict[str, Any]]:
    """By key the rows of one file. What is refused, or fails, is their ``error``."""
    first, target = alike[0], target_for(args, alike[0])
    kind = TARGETS[target].writer
    more = [] if args.calibration_tokens is None else ["--calibration-tokens", args.calibration_tokens]
    with TemporaryDirectory() as name:
        folder = Path(name)
        store, file, report = folder / "store", folder / ("model.gguf" if kind == "gguf" else "onnx"), folder / "eval.json"
        options = ["--target", target, "--bits", first.bits, "--calibration", args.calibration, *more]
        try:
            seconds, memory = timed("quantize", args.source, "--out", store, *options, "--method", *first.name.split())
            timed("export", kind, store, "--out", file)
            against = ["--source", args.source, "--text", args.text, "--chunks", args.chunks, "--json", report, "--force"]
            timed("eval", file, *against, "--weights-only")
            alone, rows = json.loads(report.read_text()), dict[str, dict[str, Any]]()
            for case in alike:
                rows[case.key] = alone
                if isinstance(case, Activated):
                    how = () if case.activations == REAL else ("--weights-only", "--activations", case.activations)
                    timed("eval", file, *against, *how)
                    rows[case.key] = {**json.loads(report.read_text()), "alone": alone["kld"]}
        except RuntimeError as error:
            return {case.key: {"error": str(error).replace(name, "")} for case in alike}
        inspected = subprocess.run([*COMMAND, "inspect", str(file), "--json"], check=True, capture_output=True, text=True)
        totals = json.loads(inspected.stdout)["totals"]
    bits = {"bits_per_weight": totals["bits_per_weight"], "file_bits": 8 * alone["bytes"] / totals["weights"]}
    made = {**bits, "seconds": seconds, "memory": memory}
    return {key: {**{name: row[name] for name in TOLD if name in row}, **made} for key, row in rows.items()}


def of_one_file(args: argparse.Namespace, wanted: Iterable[Case | Activated]) -> list[list[Case | Activated]]:
    """Those that are measured of the same file, together."""
    files = dict[tuple[str, float, str], list[Case | Activated]]()
    for case in wanted:
        files.setdefault((case.name, case.bits, target_for(args, case)), []).append(case)
    return list(files.values())


def line(case: Case, row: Row) -> str:
    """Of the table."""
    begin = f"| {case.name} | {case.bits:g} |"
    if "error" in row:
        return f"{begin} {row['error'].replace('|', '/')} | | | | | | | |"
    return (
        f"{begin} {row['kld']:.4f} | {row['ppl']:.3f} | {row['top1']:.3f} | {row['bits_per_weight']:.2f} | "
        f"{row['file_bits']:.2f} | {row['bytes'] / MB:.1f} | {row['seconds']:.0f} | {row['memory'] / MB:.0f} |"
    )


def page(args: argparse.Namespace, rows: Mapping[str, Row], command: str) -> str:
    """The document, of all rows that there are by now: what pays, whether papers' claims hold, each method's rows."""
    wanted = every_case(args.bits)
    made = {case.key: rows[case.key] for case in wanted if case.key in rows and "error" not in rows[case.key]}
    plain = {case.key for case in wanted if case.name in PLAIN}
    source = next((f" The source's perplexity is {row['source_ppl']:.3f}." for row in made.values()), "")
    told = (
        "In this project's page model and texts are those of [accuracy.md](evidence/accuracy.md#what-is-measured). "
        f"Target `{args.target}`; KL on {args.chunks} chunks of 512 tokens, weights alone.{source}"
    )
    counted = (
        "Bits of linears: all that is stored of them, over their weights; of the file: all its bytes, over the model's weights. "
        "CPU: seconds of all cores together."
    )
    said = ["# Methods side by side", "", f"    {command}", "", f"{told} {counted}", "", *what_pays(made, plain)]
    activated = {one.key: rows[one.key] for one in ROWS if one.key in rows and "error" not in rows[one.key]}
    said += ["", *claims_table({**made, **activated}), "", *activated_table(rows)]
    for method in {case.method["name"]: case.method for case in wanted}.values():
        said += ["", *section(method, [case for case in wanted if case.method == method], rows)]
    return "\n".join([*said, ""])


def section(method: Row, own: Sequence[Case], rows: Mapping[str, Row]) -> list[str]:
    """What a method is, and its rows."""
    name, apart = method["name"], [f"{key.capitalize()}: {method[key]}." for key in ("ours", "simulated") if method[key]]
    more = [f"[What it is here](methods/{name}.md)."] if (PAGES / f"{name}.md").exists() else []
    told = " ".join([f"{method['kind']} ({method['paper']}); needs {method['needs']}.", *apart, *more])
    held = dict[str, list[str]]()
    for case in own:
        held.setdefault(", ".join(case.targets), []).append(f"`{case.name}`")
    targets = [f"- {', '.join(dict.fromkeys(names))}: {where}" for where, names in held.items()]
    made = [line(case, rows[case.key]) for case in own if case.key in rows]
    elsewhere = any(one.name.split()[0] == name for one in ROWS if one.key in rows)
    lacking = "Weights alone: not measured. See [rounded activations](#rounded-activations)." if elsewhere else "Not measured."
    table = [HEAD, "|" + "---|" * (HEAD.count("|") - 1), *made] if made else [lacking]
    return [f"## {name}", "", told[0].upper() + told[1:], "", "Targets:", "", *targets, "", *table]


def main(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Make the rows that are missing, one file at a time, and the page."""
    kept = args.out.with_name(args.out.name + ".json")
    asked = {key: str(getattr(args, key)) for key in ("source", "text", "calibration", "calibration_tokens", "target", "chunks")}
    if args.out.exists() and not kept.exists():
        raise SystemExit(f"{args.out}: is there already, and is none of this tool's; name another --out")
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"asked": asked, "rows": {}}
    if known["asked"] != asked:
        raise SystemExit(f"{kept}: has rows of another command, {known['asked']}; name another --out, or remove it")
    whole = [word for before, word in pairwise(["", *words]) if "--only" not in (before, word.partition("=")[0])]
    command = shlex.join(["python", "tools/compare_systems.py", *whole])
    for alike in of_one_file(args, (case for case in cases(args) if case.key not in known["rows"])):
        rows = measured(args, alike)
        for case in alike:
            print(line_of(case, rows[case.key]) if isinstance(case, Activated) else line(case, rows[case.key]), flush=True)
        known["rows"] |= rows
        write(kept, json.dumps(known, indent=1))
    write(args.out, page(args, known["rows"], command))


def write(path: Path, text: str) -> None:
    """Whole, or not at all."""
    with new_file(path, force=True) as file:
        file.write(text.encode())


if __name__ == "__main__":
    main(arguments(), sys.argv[1:])
