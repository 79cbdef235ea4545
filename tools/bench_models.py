#!/usr/bin/env python3
"""Speed of whole models in the real runtimes: a prompt of 512 tokens, logits of each, and decoding, one token at a time.

Every file is loaded at once and the files take turns, so that other work on the machine meets all of them alike; medians are
shown. The cost model, by which `ada` decides, speaks of the linears alone: compare differences of two rows.

usage: bench_models.py [DIR]        # default: build/bench
"""

from __future__ import annotations

import sys
import time
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from demo import ADADIM, ROOT, step
from fetch_smollm2 import fetch

from exporter.inspect import inspect
from exporter.targets import TARGETS
from quantize.model_config import is_linear
from quantize.store.tensors import QuantizedStore
from runtime_checks.runtimes.exported import exported_runner
from runtime_checks.runtimes.runners import Runner


class Case(NamedTuple):
    """A file. ``slowdown``: the most that inputs rounded in blocks may cost; all have a scale in the file at 1."""

    target: str
    method: str
    bits: int
    group: int | str = 32
    slowdown: float = 1000

    @property
    def told(self) -> str:
        """In the table."""
        if self.group != CHANNEL:
            return f"{self.method}, groups of {self.group}"
        return f"{self.method}, `--max-slowdown {self.slowdown:g}`" if self.slowdown > 1 else f"{self.method}, every input static"


CHANNEL = "channel"
CASES = (
    Case("llama.cpp", "rtn-oc", 4),
    Case("onnxruntime", "rtn-oc", 4),
    Case("onnxruntime", "rtn-oc", 8),
    Case("onnxruntime", "rtn-ic", 4, 128),
    Case("onnxruntime", "rtn-ic", 4),
    Case("onnxruntime-w8a8", "rtn-oc", 8, CHANNEL, 1),
    Case("onnxruntime-w8a8", "rtn-oc", 8, CHANNEL, 1.5),
    Case("onnxruntime+adadim", "rtn-oc", 4),
    Case("onnxruntime+adadim", "rtn-ic", 4),
    Case("onnxruntime+adadim", "rtn-oc", 3),
    Case("onnxruntime+adadim", "rtn-ic", 3),
    Case("onnxruntime+adadim", "rtn-oc", 2),
)
PROMPT, DECODED = 512, 32  # tokens
ROUNDS = 5


def static_share(store: QuantizedStore) -> float:
    """Of the linears' weights, whose inputs have a scale in the file."""
    linears = [record for record in store.records.values() if is_linear(record.name, record.shape)]
    static = [record for record in linears if record.activation is not None and record.activation.grid.static]
    return sum(prod(record.shape) for record in static) / sum(prod(record.shape) for record in linears)


def linears_cost(store: QuantizedStore) -> float:
    """Seconds a token by the cost model."""
    target = TARGETS[store.target]
    return sum(
        target.decode_cost(record.grid, record.axis, (record.shape[0], record.shape[1]))
        for record in store.records.values()
        if record.grid is not None and is_linear(record.name, record.shape)
    )


def export(source: Path, folder: Path, case: Case) -> tuple[Path, float, float]:
    """Quantize and write one case; the file, the share of it whose inputs are static, and the cost model's milliseconds."""
    target, kind = case.target, TARGETS[case.target].writer
    name, store = f"{target}-{case.method}-{case.bits}-{case.group}-{case.slowdown:g}", folder / "store"
    options = ["--method", case.method, "--bits", str(case.bits), "--group-size", str(case.group)]
    options += ["--max-slowdown", f"{case.slowdown:g}", *(["--symmetric"] if case.group == CHANNEL else [])]
    step(ADADIM, "quantize", source, "--out", store, "--target", target, *options, "--force", "--quiet")
    library = ("--with-library",) if target == "onnxruntime+adadim" else ()
    path = folder / (f"{name}.gguf" if kind == "gguf" else name)
    step(ADADIM, "export", kind, store, "--out", path, *library, "--force", "--quiet")
    made = QuantizedStore(store)
    return path, static_share(made), 1e3 * linears_cost(made)


def prompt_speed(runner: Runner) -> float:
    """Tokens a second of a prompt."""
    tokens = np.arange(1, PROMPT + 1, dtype=np.int64)
    start = time.perf_counter()
    runner.logits(tokens)
    return PROMPT / (time.perf_counter() - start)


def main(folder: Path) -> None:
    """Quantize, write, load, and time in turns."""
    source = fetch()
    folder.mkdir(parents=True, exist_ok=True)
    files = [export(source, folder, case) for case in CASES]
    runners = [exported_runner(path, PROMPT) for path, _, _ in files]
    speeds = np.array([[(prompt_speed(runner), runner.speed(DECODED)) for runner in runners] for _ in range(1 + ROUNDS)])
    prompt, decoded = np.median(speeds[1:], axis=0).T
    print("\n| target | method | bits/weight | static | prompt, tokens/s | decoding, tokens/s | cost model, ms/token |")
    print("|---|---|---|---|---|---|---|")
    for case, (path, share, modelled), fast, slow in zip(CASES, files, prompt, decoded, strict=True):
        bits = inspect(path)["totals"]["bits_per_weight"]
        print(f"| {case.target} | {case.told} | {bits:.2f} | {share:.0%} | {fast:.0f} | {slow:.1f} | {modelled:.2f} |")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]) if sys.argv[1:] else ROOT / "build" / "bench")
