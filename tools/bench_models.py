#!/usr/bin/env python3
"""Speed of whole models in the real runtimes: a prompt of 512 tokens, logits of each, and decoding, one token at a time.

Every file is loaded at once and the files take turns, so that other work on the machine meets all of them alike; medians are
shown. The cost model, by which `ada` decides, speaks of the linears alone: compare differences of two rows.

usage: bench_models.py [DIR]        # default: build/bench
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from demo import ADADIM, ROOT, step
from fetch_smollm2 import fetch

from exporter.inspect import inspect
from exporter.targets import TARGETS
from quantize.model_config import is_linear
from quantize.store.tensors import QuantizedStore
from runtime_checks.runtimes.exported import exported_runner
from runtime_checks.runtimes.runners import Runner

CASES = (  # target, method, bits, group size
    ("llama.cpp", "rtn-oc", 4, 32),
    ("onnxruntime", "rtn-oc", 4, 32),
    ("onnxruntime", "rtn-ic", 4, 128),
    ("onnxruntime", "rtn-ic", 4, 32),
    ("onnxruntime+adadim", "rtn-oc", 4, 32),
    ("onnxruntime+adadim", "rtn-ic", 4, 32),
    ("onnxruntime+adadim", "rtn-oc", 3, 32),
    ("onnxruntime+adadim", "rtn-ic", 3, 32),
    ("onnxruntime+adadim", "rtn-oc", 2, 32),
)
PROMPT, DECODED = 512, 32  # tokens
ROUNDS = 5


def linears_cost(store: QuantizedStore) -> float:
    """Seconds a token by the cost model."""
    target = TARGETS[store.target]
    return sum(
        target.decode_cost(record.grid, record.axis, (record.shape[0], record.shape[1]))
        for record in store.records.values()
        if record.grid is not None and is_linear(record.name, record.shape)
    )


def export(source: Path, folder: Path, case: tuple[str, str, int, int]) -> tuple[Path, float]:
    """Quantize and write one case; the file, and what the cost model says of it in milliseconds."""
    target, method, bits, group = case
    name = f"{target}-{method}-{bits}-{group}"
    store, kind = folder / "store", TARGETS[target].writer
    options = ("--method", method, "--bits", str(bits), "--group-size", str(group), "--max-slowdown", "1000")
    step(ADADIM, "quantize", source, "--out", store, "--target", target, *options, "--force", "--quiet")
    library = ("--with-library",) if target == "onnxruntime+adadim" else ()
    path = folder / (f"{name}.gguf" if kind == "gguf" else name)
    step(ADADIM, "export", kind, store, "--out", path, *library, "--force", "--quiet")
    return path, 1e3 * linears_cost(QuantizedStore(store))


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
    runners = [exported_runner(path, PROMPT) for path, _ in files]
    speeds = np.array([[(prompt_speed(runner), runner.speed(DECODED)) for runner in runners] for _ in range(1 + ROUNDS)])
    prompt, decoded = np.median(speeds[1:], axis=0).T
    print("\n| target | method | bits/weight | prompt, tokens/s | decoding, tokens/s | cost model, ms/token |")
    print("|---|---|---|---|---|---|")
    for (target, method, _, group), (path, modelled), fast, slow in zip(CASES, files, prompt, decoded, strict=True):
        bits = inspect(path)["totals"]["bits_per_weight"]
        print(f"| {target} | {method}, groups of {group} | {bits:.2f} | {fast:.0f} | {slow:.1f} | {modelled:.2f} |")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]) if sys.argv[1:] else ROOT / "build" / "bench")
