#!/usr/bin/env python3
"""What the axis costs at run time: decoding speed of the demo's model, all per-OC against all per-IC, in the real runtimes.

Beside the measured milliseconds a token stands what the cost model, by which `ada` decides, says of the linears alone: the
difference between two rows is what to compare.

usage: bench_decode.py [DIR]        # default: build/bench
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from demo import ADADIM, ROOT, step
from fetch_smollm2 import fetch

from exporter.inspect import inspect
from exporter.targets import GGUF_TARGETS, TARGETS
from quantize.calibration import held_out_text
from quantize.model_config import LINEARS
from quantize.store import QuantizedStore

CASES = (
    ("llama.cpp", "rtn-oc", 32),
    ("onnxruntime", "rtn-oc", 64),
    ("onnxruntime", "rtn-ic", 128),
    ("onnxruntime", "rtn-ic", 64),
    ("onnxruntime", "rtn-ic", 32),
)


def linears_cost(store: QuantizedStore) -> float:
    """Seconds a token by the cost model."""
    target = TARGETS[store.target]
    return sum(
        target.decode_cost(record.grid, record.axis, (record.shape[0], record.shape[1]))
        for record in store.records.values()
        if record.grid is not None and record.name.removesuffix(".weight").endswith(LINEARS)
    )


def main(folder: Path) -> None:
    """Quantize, write and time each case."""
    source, text = fetch(), folder / "text.txt"
    folder.mkdir(parents=True, exist_ok=True)
    text.write_text(held_out_text(), encoding="utf-8")
    lines = []
    for target, method, group in CASES:
        store, kind = folder / "store", "gguf" if target in GGUF_TARGETS else "onnx"
        exported, report = folder / f"model.{kind}", folder / "eval.json"
        quantize = (
            ADADIM,
            "quantize",
            source,
            "--out",
            store,
            "--target",
            target,
            "--method",
            method,
            "--group-size",
            str(group),
        )
        step(*quantize, "--force", "--quiet")
        step(ADADIM, "export", kind, store, "--out", exported, "--force", "--quiet")
        step(ADADIM, "eval", exported, "--source", source, "--text", text, "--chunks", "1", "--json", report, "--quiet")
        measured = 1e3 / json.loads(report.read_text())["tokens_per_s"]
        bits = inspect(exported)["totals"]["bits_per_weight"]
        modelled = 1e3 * linears_cost(QuantizedStore(store))
        lines.append(f"| {target} | {method} | {group} | {bits:.2f} | {measured:.2f} | {modelled:.2f} |")
    print("\n| target | method | group | bits/weight | ms/token | cost model, linears |\n|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]) if sys.argv[1:] else ROOT / "build" / "bench")
