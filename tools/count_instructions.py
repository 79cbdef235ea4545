#!/usr/bin/env python3
"""Instructions of one call of MatMulAdaDim's kernel and of MatMulNBits, as callgrind counts them: times are noisy, these are not.

One thread. Valgrind knows processors up to AVX2, so the forms for AVX-512 are not counted.

usage: count_instructions.py JSON       # needs valgrind, and what `make native` builds
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np

from exporter.onnx.adadim_op import matmul_adadim
from exporter.onnx.matmul_nbits import matmul_nbits
from exporter.onnx.tensors import Form
from quantize.types import Axis
from runtime_checks.measure.kernel_bench import ACCURACY_LEVEL, WIRE, form_model, record_of

BUILD = Path(__file__).parent.parent / "build" / "custom_op" / "host"
CAPI = Path(str(distribution("onnxruntime").locate_file("onnxruntime/capi")))  # it runs in the driver alone
RUNTIME = next(CAPI.glob("libonnxruntime.so.*"))
SHAPES = ((2048, 2048), (2048, 5632))  # K, N
BITS, ROWS = (2, 3, 4), (1, 16)
# Onnxruntime's Run and little else, in the tests' driver. Callgrind 3.19 does one thing for each pattern: hence two.
COUNTED, DUMPED = "*RunSession*", "(anonymous namespace)::RunSession*"


def forms(shape: tuple[int, int]) -> Iterator[tuple[str, Form]]:
    yield "MatMulNBits", matmul_nbits(record_of(shape, 4, Axis.PER_OC), WIRE, ACCURACY_LEVEL)
    for bits in BITS:
        for axis in Axis:
            yield f"{bits} bits {axis}", matmul_adadim(record_of(shape, bits, axis), WIRE, ACCURACY_LEVEL)


def write_cases(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """What each call is, and its line for the driver."""
    for k, n in SHAPES:
        for rows in ROWS:
            np.ones((rows, k), np.float32).tofile(folder / f"{rows}x{k}")
        for label, form in forms((k, n)):
            model = folder / f"{label}, {k} x {n}.onnx".replace(" ", "-")
            model.write_bytes(form_model(form, k).SerializeToString())
            for rows in ROWS:
                line = f"{model} {folder / 'y'} {WIRE.x} float32 2 {rows} {k} {folder}/{rows}x{k}\n"
                yield {"K": k, "N": n, "rows": rows, "form": label}, line


def count(lines: list[str], folder: Path) -> list[int]:
    """Instructions of each line's call: callgrind writes what it counted at the end of each."""
    counting = ["valgrind", "--tool=callgrind", f"--toggle-collect={COUNTED}", f"--dump-after={DUMPED}"]
    program = [BUILD / "driver", RUNTIME, BUILD / "libadadim_ort.so", "1"]
    command = [*counting, f"--callgrind-out-file={folder / 'counts'}", *map(str, program)]
    done = subprocess.run(command, input="".join(lines), stdout=subprocess.PIPE, text=True, check=True)
    wrong = [answer for answer in done.stdout.splitlines() if not answer.startswith("ok")]
    if wrong:
        raise SystemExit(wrong[0])
    dumps = ((folder / f"counts.{number}").read_text(encoding="utf-8") for number in range(1, len(lines) + 1))
    return [int(re.findall(r"^totals: (\d+)", dump, re.MULTILINE)[0]) for dump in dumps]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="count-") as name:
        cases, lines = zip(*write_cases(Path(name)), strict=True)
        counted = count(list(lines), Path(name))
    rows = [case | {"instructions": number} for case, number in zip(cases, counted, strict=True)]
    Path(sys.argv[1]).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(*row.values())


if __name__ == "__main__":
    main()
