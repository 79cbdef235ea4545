#!/usr/bin/env python3
"""What a knapsack over group sizes loses less than FineQuant's rule, at the same bytes.

Every linear is rounded to nearest with each group size that FineQuant has to choose from. The rule takes one for each matrix, and
of all choices that take no more bytes the knapsack takes the one of least total loss. Once by the squared error of the weights,
which needs no more than FineQuant is told, and once by the KL divergence that the errors are predicted to cost, in nats a token.

usage: compare_group_sizes.py MODEL_DIR TEXT.txt [--bits 2,3,4] [--alpha .05,.08,.1] [--calibration-tokens N]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from exporter.cli.values import positive, widths
from exporter.targets import TARGETS
from quantize import DataSpec, dequantize, open_checkpoint
from quantize.checkpoint import Checkpoint
from quantize.grids import make_grid
from quantize.loss import output_loss
from quantize.methods.finequant import ALPHA
from quantize.planning.allocation import Cost, allocate
from quantize.rounding.rtn import rtn
from quantize.statistics.calibration import calibration_data
from quantize.statistics.measured import Measured, Walk, blocks_of
from quantize.steps.group_size import halved, merged
from quantize.types import F32, Axis, InputStats

TARGET = TARGETS["onnxruntime"]
LOSSES = ("squared error", "predicted KL")
Sizes = tuple[list[float], list[tuple[Cost, Cost]]]  # of one matrix: what FineQuant sees, and each size's costs by LOSSES


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", help="calibrated on, for the predicted loss")
    parser.add_argument("--bits", type=widths, default=(2, 3, 4), help="(default: 2,3,4)")
    parser.add_argument("--alpha", type=lambda word: tuple(map(float, word.split(","))), default=(ALPHA, 0.08, 0.1))
    parser.add_argument("--calibration-tokens", type=positive, default=8192, help="(default: %(default)s)")
    return parser.parse_args(words)


def linears(source: Checkpoint, text: str, tokens: int) -> Iterator[tuple[F32, InputStats]]:
    """Every one with what its errors cost."""
    data = DataSpec(text, tokens)
    ids, _ = calibration_data(data, source)
    curvature = Measured(source).curvature(ids, data.seed)
    for run in blocks_of(source, ids, curvature, Walk()):
        yield from ((source.read(name), stats) for name, stats in run.stats.items())


def measured(weight: F32, stats: InputStats, bits: int) -> Sizes:
    """Of F32[OC, IC] with every size."""
    sizes, left = halved(weight, TARGET.default_group_size)
    costs = list[tuple[Cost, Cost]]()
    for size in sizes:
        grid = make_grid("int", bits, size, symmetric=True)
        rounded = dequantize(rtn("", weight, grid, Axis.PER_OC))
        count = TARGET.stored_bytes(grid, Axis.PER_OC, (weight.shape[0], weight.shape[1]))
        squared = float(np.square(weight - rounded).sum(dtype=np.float64))
        costs.append((Cost(count, squared), Cost(count, output_loss(weight, rounded, stats))))
    return left, costs


def row(bits: int, alpha: float, found: Sequence[Sizes], loss: int) -> str:
    """Of the table: the rule's choice and the knapsack's within its bytes."""
    options = [[pair[loss] for pair in costs] for _, costs in found]
    rule = [merged(left, alpha) for left, _ in found]
    size = sum(costs[index].bytes for costs, index in zip(options, rule, strict=True))
    best = allocate(options, size)
    plain, least = (sum(costs[index].loss for costs, index in zip(options, chosen, strict=True)) for chosen in (rule, best))
    saved = 100 * (1 - least / plain)
    return f"| {bits} | {alpha:g} | {LOSSES[loss]} | {size / 1e6:.3f} | {plain:.4g} | {least:.4g} | {saved:.2f} % |"


def main(args: argparse.Namespace) -> None:
    """Print the table."""
    source = open_checkpoint(args.model)
    found: dict[int, list[Sizes]] = {bits: [] for bits in args.bits}
    for weight, stats in linears(source, args.text, args.calibration_tokens):
        for bits in args.bits:
            found[bits].append(measured(weight, stats, bits))
    print("| bits | alpha | loss | linears, MB | FineQuant | knapsack | saved |")
    print("|---|---|---|---|---|---|---|")
    for bits, alpha in ((bits, alpha) for bits in args.bits for alpha in args.alpha):
        for loss in range(len(LOSSES)):
            print(row(bits, alpha, found[bits], loss))


if __name__ == "__main__":
    main(arguments())
