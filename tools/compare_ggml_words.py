#!/usr/bin/env python3
"""GPTQ over llama.cpp's grids of words, beside ggml's own quantizer with the same importance matrix.

Each type takes the matrices of the decoder blocks that match; the others are Q8_0 in both files, which so have the same size.
The second file is ours with these tensors' bytes from ``ggml_quantize_chunk``, as llama-quantize calls it. KL is that of the
file's decoded weights to the source, on the second half of each chunk of TEXT.

usage: compare_ggml_words.py SOURCE TEXT --calibration TEXT2 --out FOLDER [--types iq3_s,iq2_s] [--match PATTERN,PATTERN]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gguf

from exporter.cli.values import positive
from exporter.targets import TARGETS
from quantize import open_checkpoint
from quantize.checkpoint.row_order import RowOrders
from quantize.gguf.names import to_gguf_name
from quantize.grids.lattice import LATTICE_GRIDS
from quantize.statistics.imatrix import read_imatrix
from runtime_checks.runtimes.ggml_quantizer import ggml_quantize

COMMAND = [sys.executable, "-m", "exporter.cli.main"]
TYPES = ",".join(grid.name for grid in LATTICE_GRIDS)
FORCED = "--force"


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("text", type=Path, help="what is measured on")
    parser.add_argument("--calibration", required=True, help="another text")
    parser.add_argument("--calibration-tokens", type=positive, default=8192)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--types", default=TYPES, help=f"(default: {TYPES})")
    parser.add_argument("--match", default="*.o_proj,*.down_proj", help="names of matrices (default: %(default)s)")
    parser.add_argument("--chunks", type=positive, default=6, help="of 512 tokens (default: %(default)s)")
    return parser.parse_args()


def adadim(*words: object) -> None:
    """One command. Raises CalledProcessError where it fails."""
    subprocess.run([*COMMAND, *map(str, words), "--quiet"], check=True, stdout=subprocess.DEVNULL)


def ours(args: argparse.Namespace, kind: str) -> Path:
    """Our file of a type, with the store that it comes from."""
    out: Path = args.out
    recipe, store, file = (out / f"{kind}.{end}" for end in ("toml", "store", "gguf"))
    rules = [f'[[rule]]\nmatch = "{pattern}"\ngrid = "{kind}"\n' for pattern in args.match.split(",")]
    recipe.write_text("\n".join(rules), encoding="utf-8")
    plain = ("--target", "llama.cpp", "--method", "gptq-oc", "--grid", "q8_0", "--embedding", "source")
    adadim("quantize", args.source, "--out", store, *plain, "--recipe", recipe, *calibration(args), FORCED)
    adadim("export", "gguf", store, "--out", file, FORCED)
    return file


def theirs(args: argparse.Namespace, kind: str, file: Path) -> Path:
    """The same file with ggml's own words."""
    other = file.with_name(f"{kind}-ggml.gguf")
    shutil.copyfile(file, other)
    source = open_checkpoint(args.source)
    orders = RowOrders(source.config, TARGETS["llama.cpp"].row_order)
    named = {to_gguf_name(name): name for name in source.specs}
    known = read_imatrix(args.out / "imatrix.gguf").entries
    with other.open("r+b") as out:
        for tensor in gguf.GGUFReader(file).tensors:
            if tensor.tensor_type == gguf.GGMLQuantizationType[kind.upper()]:
                weight = orders.to_target(named[tensor.name], source.read(named[tensor.name]))
                out.seek(int(tensor.data_offset))
                out.write(ggml_quantize(kind.upper(), weight, known[tensor.name].squares).tobytes())
    return other


def calibration(args: argparse.Namespace) -> tuple[object, ...]:
    """Options that name the text."""
    return "--calibration", args.calibration, "--calibration-tokens", args.calibration_tokens


def main(args: argparse.Namespace) -> None:
    """A line for each type."""
    args.out.mkdir(parents=True, exist_ok=True)
    adadim("imatrix", args.source, "--out", args.out / "imatrix.gguf", *calibration(args), FORCED)
    print("| type | KL, ggml | KL, ours | ours / ggml |\n|---|---|---|---|", flush=True)
    for kind in args.types.split(","):
        file, report = ours(args, kind), args.out / f"{kind}.json"
        files = (file, theirs(args, kind, file))
        against = ("--source", args.source, "--text", args.text, "--chunks", args.chunks, "--weights-only")
        adadim("compare", *files, *against, "--json", report, FORCED)
        rows = {Path(row["name"]).name: row["kld"] for row in json.loads(report.read_text())["files"]}
        own, other = (rows[path.name] for path in files)
        print(f"| {kind} | {other:.4f} | {own:.4f} | {own / other:.3f} |", flush=True)


if __name__ == "__main__":
    main(arguments())
