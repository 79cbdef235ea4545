#!/usr/bin/env python3
"""What files of `adadim sensitivity` agree on, and which of them is nearer to what is measured.

Every file plans a model file of each size. Of the first and each other file: the share of tensors that get the same option, by
size, and the rank correlation of what they predict of all options. Each plan is rounded to nearest with searched params and run
in torch on its decoded weights; the second half of each chunk of 512 tokens counts. What is measured of a plan is kept in OUT,
and not measured again.

usage: compare_sensitivities.py MODEL_DIR TEXT.txt OUT.json SENSITIVITY.json ... --target onnxruntime      # see --help
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from compare_predictions import divergence, planned_size, rank_correlation, rounded_runner, statistics

from exporter.budget import Allocator
from exporter.cli.values import positive
from exporter.file_size import size_of_bits
from exporter.targets import TARGETS
from quantize import DataSpec, QuantizeConfig, open_checkpoint
from quantize.checkpoint import Checkpoint
from quantize.methods import Around
from quantize.planning.options import TABLES
from quantize.planning.plan import ModelPlan
from quantize.planning.sensitivity import Sensitivity, read_sensitivity
from quantize.statistics.calibration import load_text
from quantize.store.outputs import new_file
from quantize.types import Axis, Grid
from runtime_checks.measure.evaluate import EvalOptions, predictions, text_chunks
from runtime_checks.runtimes.isolated import source_runner

Option = tuple[Axis, Grid]


def losses(sensitivity: Sensitivity) -> dict[str, dict[Option, float]]:
    """Nats a token, of each option of each tensor."""
    found: dict[str, dict[Option, float]] = {}
    for name, records in sensitivity.options.items():
        held = [one for one in records if not one.float_columns]
        found[name] = {(one.axis, one.grid): one.loss[one.axis] for one in held if one.grid is not None}
    return found


def predicted(plan: ModelPlan, known: Mapping[str, Mapping[Option, float]]) -> float:
    """Nats a token: the sum over its tensors."""
    return sum(known[layer.name][option] for layer in plan.tensors for option in layer.candidates.items())


def same_share(one: ModelPlan, other: ModelPlan, names: Sequence[str]) -> float:
    """Of ``names`` those that get the same option in both."""
    chosen = [{layer.name: dict(layer.candidates) for layer in plan.tensors} for plan in (one, other)]
    return float(np.mean([chosen[0][name] == chosen[1][name] for name in names]))


def agreement(files: Mapping[str, Sensitivity], plans: Mapping[tuple[str, float], ModelPlan], bits: Sequence[float]) -> str:
    """A table: each file beside the first."""
    (first, taken), *others = files.items()
    ours, names = losses(taken), list(taken.options)
    out = [f"| beside {first} | {' | '.join(f'same at {x:g}' for x in bits)} | rank, all options | rank, linears alone |"]
    out.append("|---" * (len(bits) + 3) + "|")
    for label, other in others:
        theirs = losses(other)
        shares = [f"{same_share(plans[first, x], plans[label, x], names):.0%}" for x in bits]
        ranks = []
        for some in (names, [name for name in names if name not in TABLES]):
            both = [(ours[name][key], theirs[name][key]) for name in some for key in ours[name] if key in theirs[name]]
            ranks.append(f"{rank_correlation(*zip(*both, strict=True)):.3f}")
        out.append(f"| {label} | {' | '.join([*shares, *ranks])} |")
    return "\n".join(out)


def measure(source: Checkpoint, plans: Mapping[tuple[str, float], ModelPlan], args: argparse.Namespace) -> dict[str, float]:
    """Nats a token of each plan by its label, what OUT has already among them."""
    question = [args.text, args.chunks, source.sha256, args.target]
    kept: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"of": question, "measured": {}}
    if kept["of"] != question:
        raise SystemExit(f"{args.out}: has measurements of something else; name another file")
    found: dict[str, float] = kept["measured"]
    missing = {label(key): plan for key, plan in plans.items() if label(key) not in found}
    if missing:
        chunks = text_chunks(source, load_text(args.text).text, EvalOptions(chunks=args.chunks))
        known = statistics(source, DataSpec(args.calibration, args.calibration_tokens))
        runner = source_runner(source, chunks.shape[1])
        base = [predictions(runner, tokens) for tokens in chunks]
        runner.close()
    for name, plan in missing.items():
        found[name] = divergence(base, rounded_runner(source, plan, known), chunks)
        with new_file(args.out, force=True) as file:
            file.write(json.dumps(kept).encode())
    return found


def label(key: tuple[str, float]) -> str:
    """Of a plan."""
    return f"{key[0]}, {key[1]:g}"


def main(args: argparse.Namespace) -> None:
    """Print both tables."""
    source, target = open_checkpoint(args.model), TARGETS[args.target]
    around = Around(float_columns=0)  # which decoded weights in torch have not
    config = QuantizeConfig("search-ada", data=DataSpec(args.calibration, args.calibration_tokens), around=around)
    files = {path.stem: read_sensitivity(path, source, target) for path in args.sensitivity}
    plans, sizes = dict[tuple[str, float], ModelPlan](), dict[tuple[str, float], int]()
    for bits in args.bits:
        for name, sensitivity in files.items():
            allocator = Allocator(source, config, target, sensitivity, lambda plan: planned_size(source, plan))
            plans[name, bits] = allocator.plan(size_of_bits(source.specs, bits))
            sizes[name, bits] = planned_size(source, plans[name, bits])
    print(agreement(files, plans, args.bits), flush=True)
    found, known = measure(source, plans, args), {name: losses(one) for name, one in files.items()}
    print(f"\n| plan of, bits a weight | MB | measured | {' | '.join(f'by {name}' for name in files)} |")
    print("|---" * (3 + len(files)) + "|")
    for key, plan in plans.items():
        said = " | ".join(f"{predicted(plan, own):.4f}" for own in known.values())
        print(f"| {label(key)} | {sizes[key] / 1e6:.2f} | {found[label(key)]:.4f} | {said} |")
    measured = [found[label(key)] for key in plans]
    for name, own in known.items():
        values = [predicted(plan, own) for plan in plans.values()]
        logs = np.log(np.divide(measured, values))
        print(f"\n{name}: rank correlation with what is measured {rank_correlation(values, measured):.3f};", end=" ")
        print(f"measured / predicted {np.exp(logs.mean()):.2f}, times or by {np.exp(logs.std()):.2f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", help="UTF-8 text to measure on, not calibrated on")
    parser.add_argument("out", type=Path, help="what was measured, and goes on from")
    parser.add_argument("sensitivity", type=Path, nargs="+", help="made by `adadim sensitivity`; the name is the label")
    parser.add_argument("--target", choices=tuple(TARGETS), default="onnxruntime")
    parser.add_argument(
        "--bits", type=float, nargs="+", default=[3.25, 3.75, 4.5, 5.5], metavar="X", help="of a weight of the file"
    )
    parser.add_argument("--chunks", type=positive, default=4, metavar="N", help="of 512 tokens")
    parser.add_argument("--calibration", default=DataSpec.text, metavar="FILE", help="what rounding searches params by")
    parser.add_argument("--calibration-tokens", type=positive, default=DataSpec.tokens, metavar="N")
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
