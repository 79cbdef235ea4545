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
from pathlib import Path

import numpy as np

from exporter.targets import TARGETS
from quantize import QuantizeConfig, build_plan, dequantize, open_checkpoint
from quantize.checkpoint import Checkpoint
from quantize.loss import output_loss
from quantize.rounding import ROUNDERS
from quantize.source import walk_layers
from quantize.statistics.calibration import calibration_data
from quantize.transforms import NAMES, TRANSFORMS, correct, transform
from quantize.transforms.layer import READERS, DecoderLayer
from quantize.types import F32, InputStats, TensorPlan

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
    """Of some layers, spread over the model: to choose by, and to judge by; by names within the layer."""
    wanted = sorted({round(i * (source.config.num_layers - 1) / (LAYERS - 1)) for i in range(LAYERS)})
    tokens, _ = calibration_data(QuantizeConfig(calibration=text, calibration_tokens=TOKENS), source.assets(), str(source.path))
    cut = len(tokens) * 2 // 3
    found: dict[int, list[Stats]] = {index: [] for index in wanted}
    for part in (tokens[:cut], tokens[cut:]):
        for run in walk_layers(source, part, "unit", 0):
            if run.index in found:
                found[run.index].append({name.split(".", 3)[3]: stats for name, stats in run.stats.items()})
    return {index: (chosen, judged) for index, (chosen, judged) in found.items()}


def layer_of(source: Checkpoint, index: int, plans: Mapping[str, TensorPlan], stats: Stats) -> DecoderLayer:
    """In the source's own row order: no transform touches that of q and k."""
    prefix = f"model.layers.{index}."
    tensors = {name.removeprefix(prefix): np.array(source.read(name)) for name in plans if name.startswith(prefix)}
    quantized = {name: plans[prefix + name] for name in tensors if plans[prefix + name].candidates}
    return DecoderLayer(source.config, quantized, tensors, dict(stats))


def losses(layer: DecoderLayer, source: DecoderLayer, judged: Stats, names: tuple[str, ...]) -> dict[str, float]:
    """Per linear, of ``layer`` with ``names`` applied, rounded as planned."""
    transform(layer, names)
    rounded = dict[str, F32]()
    for name, plan in layer.plans.items():
        ((axis, grid),) = plan.candidates.items()
        rounded[name] = dequantize(ROUNDERS[plan.rounder](name, layer.tensors[name], grid, axis, layer.stats[name]))
    before = dict(layer.tensors)
    correct(layer, rounded, names)
    for norm, linears in READERS.items():
        for name in linears:
            rounded[name] = rounded[name] * (layer.tensors[norm] / before[norm])
    return {
        name: output_loss(source.tensors[name], layer.in_source_basis(name, value), judged[name])
        for name, value in rounded.items()
    }


def touched(name: str, layer: DecoderLayer) -> list[str]:
    """The linears that a transform may change."""
    if name in TRANSFORMS:
        return [weight for candidates in TRANSFORMS[name](layer) for weight in layer.weights(candidates[0])]
    return [linear for linears in READERS.values() for linear in linears] if name in NAMES else list(layer.plans)


def compare(source: Checkpoint, case: str, rounder: str, statistics: Mapping[int, tuple[Stats, Stats]]) -> str:
    """One line of the table."""
    target, grid, bits, group, axis = CASES[case]
    config = QuantizeConfig(f"{rounder}-{axis}", bits, grid, group, allow_fallback=True)
    plans = {plan.name: plan for plan in build_plan(source.specs, config, TARGETS[target])}
    logs: dict[str, list[float]] = {name: [] for name in (*NAMES, "all")}
    for index, (chosen, judged) in statistics.items():
        plain = layer_of(source, index, plans, chosen)
        base = losses(layer_of(source, index, plans, chosen), plain, judged, ())
        for name, ratios in logs.items():
            linears = touched(name, plain)
            found = losses(layer_of(source, index, plans, chosen), plain, judged, NAMES if name == "all" else (name,))
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
