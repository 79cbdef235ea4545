#!/usr/bin/env python3
"""What each transform does to the loss of rounding, on tokens that were not calibrated on: a ratio to no transform at all.

For every grid and rounder: the geometric mean over some layers of the ratio of losses, summed over the linears that the transform
touches; "all" is all of them together, over all linears. Below 1 is a gain. Statistics come from two thirds of the drawn
tokens, the losses from the rest.

usage: compare_transforms.py MODEL_DIR TEXT.txt [GRID ...]      # of q4_0, iq4_nl, q3_k, q2_k, int4g32-oc, ...; default: all
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from exporter.targets import TARGETS
from quantize import DataSpec, GridSpec, QuantizeConfig, build_plan, dequantize, open_checkpoint
from quantize.architecture.families import fold_sites
from quantize.block import Block, Kit, Rounded
from quantize.checkpoint import Checkpoint
from quantize.checkpoint.row_order import RowOrders
from quantize.loss import output_loss
from quantize.methods import ROUNDERS
from quantize.model_config import block_prefix
from quantize.source import walk_blocks
from quantize.statistics.calibration import calibration_data
from quantize.steps.fold import ChangeBasis, Correction, touched
from quantize.transforms import CORRECTIONS, NAMES, TRANSFORMS
from quantize.types import InputStats, RowOrder, TensorPlan

TOKENS = 12288  # in all
LAYERS = 5
CASES = {  # target, grid, bits, group size, axis
    "q4_0": ("llama.cpp", "q4_0", None, None, "oc"),
    "iq4_nl": ("llama.cpp", "iq4_nl", None, None, "oc"),
    "q3_k": ("llama.cpp", "q3_k", None, None, "oc"),
    "q2_k": ("llama.cpp", "q2_k", None, None, "oc"),
    **{
        f"int{bits}g{group}-{axis}": ("onnxruntime+adadim", "int", bits, group, axis)
        for bits, group in ((4, 32), (4, 64), (4, 128), (3, 64), (2, 64))
        for axis in ("oc", "ic")
    },
}
Stats = Mapping[str, InputStats]


def statistics(source: Checkpoint, text: str) -> dict[int, tuple[Stats, Stats]]:
    """Of some blocks, spread over the model: to choose by, and to judge by; by name."""
    wanted = sorted({round(i * (source.config.num_layers - 1) / (LAYERS - 1)) for i in range(LAYERS)})
    tokens, _ = calibration_data(DataSpec(text, TOKENS), source)
    cut = len(tokens) * 2 // 3
    found: dict[int, list[Stats]] = {index: [] for index in wanted}
    for part in (tokens[:cut], tokens[cut:]):
        for run in walk_blocks(source, part, "unit", 0):
            if run.index in found:
                found[run.index].append(run.stats)
    return {index: (chosen, judged) for index, (chosen, judged) in found.items()}


def block_of(source: Checkpoint, index: int, plans: Mapping[str, TensorPlan], stats: Stats) -> Block:
    """In the source's own row order: no transform touches that of q and k."""
    prefix = block_prefix(index)
    tensors = {name: np.array(source.read(name)) for name in plans if name.startswith(prefix)}
    quantized = {name: plans[name] for name in tensors if plans[name].candidates}
    shapes = {name: value.shape for name, value in tensors.items()}
    return Block(quantized, tensors, dict(stats), fold_sites=fold_sites(source.config, prefix, shapes))


def losses(block: Block, judged: Stats, names: tuple[str, ...], kit: Kit) -> dict[str, float]:
    """Per linear, of ``block`` with ``names`` applied, rounded as planned."""
    plain = block
    for name in TRANSFORMS:
        block = ChangeBasis(name)(block, list(block.plans), kit) if name in names else block
    rounded = {}
    for name, plan in block.plans.items():
        ((axis, grid),) = plan.candidates.items()
        tensor = ROUNDERS[plan.method](name, block.tensors[name], grid, axis, block.stats[name])
        rounded[name] = Rounded(tensor, plan.method, None)
    corrected = replace(block, rounded=rounded)
    for name in CORRECTIONS:
        corrected = Correction(name)(corrected, list(block.plans), kit) if name in names else corrected
    values = {name: dequantize(found.tensor) for name, found in rounded.items()}
    for norm, linears in corrected.fold_sites.norms.items() if corrected.fold_sites else ():
        for name in linears:
            values[name] = values[name] * (corrected.tensors[norm] / block.tensors[norm])  # a family's gain is what is stored
    return {
        name: output_loss(plain.tensors[name], block.in_source_basis(name, value), judged[name]) for name, value in values.items()
    }


def changed(name: str, block: Block) -> list[str]:
    """The linears that a transform may change."""
    sites = block.fold_sites
    assert sites is not None
    if name in TRANSFORMS:
        return [weight for candidates in TRANSFORMS[name](block, sites) for weight in touched(block, candidates[0])]
    return [linear for linears in sites.norms.values() for linear in linears] if name in NAMES else list(block.plans)


def compare(source: Checkpoint, case: str, rounder: str, statistics: Mapping[int, tuple[Stats, Stats]]) -> str:
    """One line of the table."""
    target, grid, bits, group, axis = CASES[case]
    config = QuantizeConfig(f"{rounder}-{axis}", GridSpec(grid, bits, group), allow_fallback=True)
    plans = {plan.name: plan for plan in build_plan(source.specs, config, TARGETS[target])}
    kit = Kit(TARGETS[target], RowOrders(source.config, RowOrder.HF), ROUNDERS, config.max_slowdown)
    logs: dict[str, list[float]] = {name: [] for name in (*NAMES, "all")}
    for index, (chosen, judged) in statistics.items():
        block = block_of(source, index, plans, chosen)
        base = losses(block, judged, (), kit)
        for name, ratios in logs.items():
            linears = changed(name, block)
            found = losses(block, judged, NAMES if name == "all" else (name,), kit)
            ratios.append(np.log(sum(found[linear] for linear in linears) / sum(base[linear] for linear in linears)))
    return f"| {case} | {rounder} | " + " | ".join(f"{np.exp(np.mean(ratios)):.3f}" for ratios in logs.values()) + " |"


def main(arguments: list[str]) -> None:
    """Print the table."""
    source = open_checkpoint(Path(arguments[0]))
    found = statistics(source, arguments[1])
    print(f"| grid | rounder | {' | '.join(NAMES)} | all |")
    print("|---|---" + "|---" * (len(NAMES) + 1) + "|")
    for case in arguments[2:] or CASES:
        for rounder in ("rtn", "gptq"):
            print(compare(source, case, rounder, found), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:])
