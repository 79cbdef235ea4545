#!/usr/bin/env python3
"""The whole path on a real model: fetch SmolLM2-135M, quantize, write GGUF and ONNX, prove and measure both, and let them speak.

Each step runs in a process of its own, as a person would run it; only its largest memory is remembered.

usage: demo.py [DIR]        # default: build/demo
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fetch_smollm2 import fetch
from generate import QUESTION

from quantize.statistics.calibration import held_out_text

TOOLS = Path(__file__).parent
ROOT = TOOLS.parent
FILES = ("llama.cpp/model.gguf", "onnxruntime/onnx")
CHUNKS = 8
CALIBRATION_TOKENS = 8192  # half the default: the demo has to end soon
ABOUT_THE_MODEL = """\
The model is SmolLM2-135M-Instruct with a seeded dither of one quantization step on its linear weights. The file that can be
fetched stores them as Q4_1: they lie on a 4-bit lattice per output channel, and 4-bit per-OC rounding would get them back for
free, which would flatter every number below. The dither takes them off that lattice; `source` is the dithered model."""
ABOUT_THE_TEXT = f"""\
Scored: the second half of each of {CHUNKS} chunks of 512 tokens, from the end of pydoc_data.topics.
Calibration reads the beginning of that text and never sees this part of it."""
COLUMNS = ("file", "size MB", "bits/weight", "perplexity", "KL div.", "top-1", "tokens/s")


def step(*command: str | Path) -> str:
    """Run one step, its messages shown; returns what it printed. Ends the demo if it fails."""
    print("$ " + " ".join(_readable(word) for word in command), flush=True)
    start = time.monotonic()
    done = subprocess.run([str(word) for word in command], check=False, stdout=subprocess.PIPE, text=True)
    print(f"  {time.monotonic() - start:.0f} s", flush=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}demo: this step failed with exit code {done.returncode}")
    return done.stdout


def _readable(word: str | Path) -> str:
    path = Path(word)
    if not path.is_absolute():
        return str(word)
    return path.name if path.parent == Path(sys.executable).parent else os.path.relpath(path)


def measure(out: Path, source: Path, text: Path) -> list[dict[str, float]]:
    """``adadim compare`` of the files, which runs the source once for both."""
    report, page, files = out / "compare.json", out / "compare.html", [out / path for path in FILES]
    options = ("--source", source, "--text", text, "--chunks", str(CHUNKS), "--json", report, "--html", page)
    print(step(ADADIM, "compare", *files, *options))
    rows: list[dict[str, float]] = json.loads(report.read_text())["files"]
    return rows


def rows(source: Path, measured: list[dict[str, float]]) -> list[tuple[str, ...]]:
    """The table's cells: the source, then each file."""
    megabytes = (source / "model.safetensors").stat().st_size / 1e6
    out: list[tuple[str, ...]] = [("source, float16", f"{megabytes:.1f}", "16", f"{measured[0]['source_ppl']:.2f}", "0", "1", "")]
    for name, item in zip(FILES, measured, strict=True):
        numbers = [f"{item['bytes'] / 1e6:.1f}", f"{item['bits_per_weight']:.2f}", f"{item['ppl']:.2f}", f"{item['kld']:.4f}"]
        out.append((name, *numbers, f"{item['top1']:.3f}", f"{item['tokens_per_s']:.0f}"))
    return out


def markdown(cells: list[tuple[str, ...]]) -> str:
    """A table that reads well both printed and pasted."""
    table = [COLUMNS, *cells]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def main(folder: Path) -> None:
    """Everything; the model is made once, the rest anew each time."""
    start = time.monotonic()
    source, out, text = folder / "model", folder / "out", folder / "held-out.txt"
    gguf = fetch()
    folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        step(sys.executable, TOOLS / "make_reference_model.py", gguf, source)
    shutil.rmtree(out, ignore_errors=True)
    text.write_text(held_out_text(), encoding="utf-8")
    print(step(ADADIM, "run", source, "--out", out, "--calibration-tokens", str(CALIBRATION_TOKENS)))
    measured = measure(out, source, text)
    spoken = {path: step(sys.executable, TOOLS / "generate.py", out / path) for path in FILES}
    print(f"\n{ABOUT_THE_MODEL}\n")
    print(f"{ABOUT_THE_TEXT}\n")
    print(markdown(rows(source, measured)))
    print(f"\nAsked {QUESTION!r}, each file answered in its runtime:")
    for path, sentence in spoken.items():
        print(f"  {path}: {sentence.strip()}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\n{time.monotonic() - start:.0f} s, largest step {peak:.2f} GiB. Files: {os.path.relpath(out)}")


ADADIM = Path(sys.executable).with_name("adadim")

if __name__ == "__main__":
    main(Path(*sys.argv[1:2]) if sys.argv[1:] else ROOT / "build" / "demo")
