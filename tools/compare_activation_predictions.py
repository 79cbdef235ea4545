#!/usr/bin/env python3
"""How well predicted KL divergence agrees with measured, over plans that mix widths of weights and of activations.

A plan gives each linear a width of its weights and each input site a grid of ACTIVATIONS, or leaves either as it is, drawn by
chance: plans differ in how often they draw few bits. Predicted is the sum of what ``output_loss`` says of the weights, rounded to
nearest with searched params, and of what ``activation_loss`` says of a sample of the inputs. Measured is the whole model in torch
with these weights, its inputs rounded as they come. The second half of each chunk of 512 tokens counts.

usage: compare_activation_predictions.py MODEL_DIR TEXT.txt --calibration TEXT2 [--plans N] [--chunks N] ...      # see --help
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from compare_predictions import divergence, rank_correlation
from threadpoolctl import threadpool_limits

from exporter.cli.values import positive
from quantize import DataSpec, dequantize, open_checkpoint
from quantize.activations import ACTIVATIONS, IN_BLOCKS, Activation
from quantize.checkpoint import Checkpoint
from quantize.grids import make_grid
from quantize.loss import activation_loss, output_loss
from quantize.methods import ROUNDERS
from quantize.progress import track
from quantize.source import build_model, measure_curvature, round_inputs, walk_blocks
from quantize.statistics.calibration import calibration_data, load_text
from quantize.types import F32, Axis, InputStats
from quantize.workers import in_threads
from runtime_checks.measure.evaluate import EvalOptions, predictions, text_chunks
from runtime_checks.runtimes.decoded import DECODED
from runtime_checks.runtimes.isolated import source_runner
from runtime_checks.runtimes.runners import TorchRunner

WIDTHS = (8, 4, 3, 2)  # of the int grid
GROUP = 64
FLOAT = "float"  # as it is
SHARES = (-2.5, -0.5)  # powers of ten: how often a plan draws a site's grid, or a weight's width


@dataclass(frozen=True)
class Known:
    """Of each linear, by name: what each of its choices is predicted to cost, and what was fitted to its input. ``sites``: names
    that see the same input."""

    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    inputs: dict[str, dict[str, float]] = field(default_factory=dict)
    fitted: dict[str, dict[str, Activation]] = field(default_factory=dict)
    stats: dict[str, InputStats] = field(default_factory=dict)
    sites: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Mixed:
    """A plan: a width or FLOAT by weight, a word of ACTIVATIONS or FLOAT by weight, alike within a site."""

    label: str
    weights: Mapping[str, str]
    inputs: Mapping[str, str]

    def predicted(self, known: Known) -> float:
        """In nats per token."""
        own = sum(known.weights[name][word] for name, word in self.weights.items())
        return own + sum(known.inputs[name][word] for name, word in self.inputs.items())


def measured_losses(source: Checkpoint, data: DataSpec) -> Known:
    """One walk over the calibration text."""
    tokens, _ = calibration_data(data, source)
    curvature, known = measure_curvature(source, tokens, data.seed), Known()
    for run in track(walk_blocks(source, tokens, curvature, 0), "losses", source.config.num_layers):
        known.sites.extend(run.sites)
        for name, found in zip(run.stats, in_threads(partial(_losses, source), run.stats.items()), strict=True):
            known.weights[name], known.inputs[name], known.fitted[name] = found
            known.stats[name] = InputStats(run.stats[name].importance.copy(), tokens.size, run.stats[name].row_weight)
    return known


def _losses(source: Checkpoint, one: tuple[str, InputStats]) -> tuple[dict[str, float], dict[str, float], dict[str, Activation]]:
    name, stats = one
    weight, seen = source.read(name), stats.inputs
    assert seen is not None
    of_weights = {str(bits): output_loss(weight, rounded(name, weight, bits, stats), stats) for bits in WIDTHS}
    ends = np.stack([seen.low, seen.high])  # of all tokens, which a static scale has to reach
    fitted = {word: Activation.fitted(word, ends) for word in ACTIVATIONS}
    of_inputs = {word: activation_loss(weight, one.round(seen.sample), stats) for word, one in fitted.items()}
    return {FLOAT: 0.0, **of_weights}, {FLOAT: 0.0, **of_inputs}, fitted


def rounded(name: str, weight: F32, bits: int, stats: InputStats) -> F32:
    """F32[OC, IC] to nearest with searched params."""
    return dequantize(ROUNDERS["search"](name, weight, make_grid("int", bits, GROUP), Axis.PER_OC, stats))


def plans(known: Known, count: int, seed: int) -> list[Mixed]:
    """From those that draw few bits seldom to those that draw them often, of weights and of activations apart."""
    rng, out = np.random.default_rng(seed), list[Mixed]()
    words, widths = [FLOAT, *ACTIVATIONS], [FLOAT, *map(str, WIDTHS)]
    for index in range(count):
        dear, coarse = 10.0 ** rng.uniform(*SHARES, 2)  # losses add up while they are small
        of_inputs, of_weights = dict[str, str](), dict[str, str]()
        for site in known.sites:
            word = str(rng.choice(words)) if rng.random() < dear else IN_BLOCKS
            of_inputs |= dict.fromkeys(site, word)
            of_weights |= {name: str(rng.choice(widths)) if rng.random() < coarse else "8" for name in site}
        out.append(Mixed(f"{index}: {dear:.3f} of inputs, {coarse:.3f} of weights drawn", of_weights, of_inputs))
    return out


def mixed_runner(source: Checkpoint, plan: Mixed, known: Known) -> TorchRunner:
    """The source with the plan's weights in it, whose linears round what they read."""

    def weight_of(name: str) -> F32:
        word, weight = plan.weights.get(name, FLOAT), source.read(name)
        return weight if word == FLOAT else rounded(name, weight, int(word), known.stats[name])

    values = dict(zip(source.specs, in_threads(weight_of, source.specs), strict=True))
    model = build_model(source.config, values.__getitem__, source.tied)
    rounded_ones = {name: known.fitted[name][word] for name, word in plan.inputs.items() if word != FLOAT}
    round_inputs(model, {name.removesuffix(".weight"): one.round for name, one in rounded_ones.items()})
    return TorchRunner(model, DECODED)


def main(args: argparse.Namespace) -> None:
    """Print the table."""
    source = open_checkpoint(args.model)
    chunks = text_chunks(source, load_text(args.text).text, EvalOptions(chunks=args.chunks))
    with threadpool_limits(limits=1, user_api="blas"):
        known = measured_losses(source, DataSpec(args.calibration, args.calibration_tokens))
    runner = source_runner(source, chunks.shape[1])
    base = [predictions(runner, tokens) for tokens in chunks]
    runner.close()
    print("| plan | predicted | measured |\n|---|---|---|", flush=True)
    guessed, found = list[float](), list[float]()
    for plan in plans(known, args.plans, args.seed):
        guessed.append(plan.predicted(known))
        found.append(divergence(base, mixed_runner(source, plan, known), chunks))
        print(f"| {plan.label} | {guessed[-1]:.4f} | {found[-1]:.4f} |", flush=True)
    print(told(guessed, found))


def told(guessed: Sequence[float], found: Sequence[float]) -> str:
    """How well the two agree."""
    logs = np.log(np.divide(found, guessed))
    agree = f"Spearman's rank correlation {rank_correlation(guessed, found):.3f}"
    return f"\n{agree}; measured / predicted {np.exp(logs.mean()):.2f}, times or by {np.exp(logs.std()):.2f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", help="UTF-8 text to measure on, not calibrated on")
    parser.add_argument("--calibration", default=DataSpec.text, metavar="FILE")
    parser.add_argument("--calibration-tokens", type=positive, default=8192, metavar="N")
    parser.add_argument("--plans", type=positive, default=12, metavar="N")
    parser.add_argument("--chunks", type=positive, default=4, metavar="N", help="of 512 tokens")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
