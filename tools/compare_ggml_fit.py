#!/usr/bin/env python3
"""How well each grid fits real weights: weighted squared error and time, beside ggml's own quantizer with the same importance.

A number below 1 in "error" says that we leave less of sum(importance * error**2) than ggml does. Importance is drawn, with a
spread like that of real second moments. Both run on one thread; rows are joined where they are no multiple of 256.

usage: compare_ggml_fit.py MODEL_DIR [TENSOR ...]      # default: three linears of different depth
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from quantize.blocks import spread, to_blocks
from quantize.checkpoint import Checkpoint, open_checkpoint
from quantize.grids import BLOCK_GRIDS
from quantize.model_config import is_linear
from quantize.types import F32, Grid
from runtime_checks.runtimes.ggml_quantizer import ggml_dequantize, ggml_quantize

SUPER_BLOCK = 256


def read_rows(source: Checkpoint, name: str) -> F32:
    """The weight with rows that every block divides."""
    weight = source.read(name)
    if weight.shape[1] % SUPER_BLOCK == 0:
        return np.ascontiguousarray(weight)
    cols = weight.shape[1] * SUPER_BLOCK // np.gcd(weight.shape[1], SUPER_BLOCK)
    return np.ascontiguousarray(weight.reshape(-1)[: weight.size // cols * cols].reshape(-1, cols))


def our_values(grid: Grid, weight: F32, importance: F32) -> F32:
    """Fitted, rounded and decoded."""
    params = grid.fit(to_blocks(weight, grid.block_size), to_blocks(importance, grid.block_size))
    scale, zero = (spread(value, grid.group_size, weight.shape[1]) for value in grid.scale_zero(params))
    return grid.decode(grid.encode(weight, scale, zero, importance), scale, zero)


def default_tensors(source: Checkpoint) -> list[str]:
    """The first, the middle and the last linear."""
    linears = [name for name, spec in source.specs.items() if is_linear(name, spec.shape)]
    return [linears[0], linears[len(linears) // 2], linears[-1]]


def compare(grid: Grid, weights: list[F32]) -> str:
    """One line of the table."""
    loss, seconds = np.zeros(2), np.zeros(2)
    for weight in weights:
        rng = np.random.default_rng(0)
        importance = np.exp(1.5 * rng.standard_normal(weight.shape[1])).astype(np.float32)
        start = time.process_time()
        ours = our_values(grid, weight, importance)
        between = time.process_time()
        blocks = ggml_quantize(grid.name.upper(), weight, importance)
        seconds += between - start, time.process_time() - between
        for i, values in enumerate((ours, ggml_dequantize(grid.name.upper(), blocks))):
            loss[i] += float(np.sum(np.square(values - weight) * importance, dtype=np.float64))
    return f"{grid.name:8} {grid.bits_per_weight:6.3f} {loss[0] / loss[1]:7.3f} {seconds[0]:8.2f} s {seconds[1]:8.2f} s"


def main(arguments: list[str]) -> None:
    """Print the table."""
    source = open_checkpoint(Path(arguments[0]))
    weights = [read_rows(source, name) for name in arguments[1:] or default_tensors(source)]
    print(f"{'grid':8} {'bits':>6} {'error':>7} {'ours':>10} {'ggml':>10}")
    for grid in BLOCK_GRIDS.values():
        print(compare(grid, weights), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
