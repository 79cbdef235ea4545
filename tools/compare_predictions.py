#!/usr/bin/env python3
"""How well predicted KL divergence agrees with measured, over plans whose files are nearly one size.

Plans: the allocation for a few sizes near the asked one; the same from losses that were multiplied by random factors, so that
plans of one size differ in what they predict; and one grid for all linears with whichever grid of the tables makes it fit.
Each is rounded to nearest with searched params, which is what the predictions are for, and run in torch on its decoded weights;
the second half of each chunk of 512 tokens counts.

usage: compare_predictions.py MODEL_DIR SENSITIVITY.json TEXT.txt --target-size 90MB [--svg OUT.svg] ...      # see --help
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from exporter.budget import Allocator
from exporter.cli.values import file_size, positive
from exporter.targets import TARGETS
from exporter.writers import writer_of
from quantize import DataSpec, QuantizeConfig, dequantize, open_checkpoint
from quantize.checkpoint import Checkpoint
from quantize.checkpoint.row_order import RowOrders
from quantize.methods import ROUNDERS, Around
from quantize.planning.options import TABLES
from quantize.planning.plan import ModelPlan
from quantize.planning.sensitivity import Sensitivity, read_sensitivity
from quantize.progress import track
from quantize.run.pipeline import planned_store
from quantize.source import build_model, measure_curvature, walk_blocks
from quantize.statistics.calibration import calibration_data, load_text
from quantize.store.outputs import new_file
from quantize.types import F32, I64, InputStats, TensorPlan
from quantize.weight import turned, turned_back
from quantize.workers import in_threads
from runtime_checks.measure.divergence import compare, join
from runtime_checks.measure.evaluate import EvalOptions, predictions, text_chunks
from runtime_checks.runtimes.decoded import DECODED
from runtime_checks.runtimes.isolated import source_runner
from runtime_checks.runtimes.runners import Runner, TorchRunner

NEAR = 0.1  # of the asked size: how far a plan's may lie from it
SIZES = (0.92, 1.08)  # of the allocations
STRENGTHS = (0.5, 1.0, 2.0, 4.0)  # standard deviations of the logarithms of random factors
TABLE_STEP = 4096  # rows of an embedding or a head that are rounded at a time
COLOURS = {"allocated": "#3987e5", "disturbed": "#d9772b", "uniform": "#1f9e74"}  # legible on white and on black
GREY, SIDE, MARGIN = "#808080", 420, 60  # of the plot; pixels


@dataclass(frozen=True)
class Case:
    """A plan, its file's bytes, and its predicted KL divergence in nats per token; ``kind`` is a key of COLOURS."""

    kind: str
    label: str
    plan: ModelPlan
    size: int
    predicted: float


@dataclass(frozen=True)
class Planner:
    """Makes the plans."""

    source: Checkpoint
    allocator: Allocator

    def cases(self, goal: int, count: int) -> list[Case]:
        """A quarter allocated, a quarter uniform if so many come near enough, the rest disturbed."""
        sizes = np.linspace(*SIZES, max(1, count // 4))
        found = [self._case("allocated", f"{size:.2f}", self.allocator.plan(int(size * goal))) for size in sizes]
        found += self._uniform(goal)[: count // 4]
        for seed in range(count - len(found)):
            strength = STRENGTHS[seed % len(STRENGTHS)]
            disturbed = replace(self.allocator, sensitivity=self._disturbed(strength, seed))
            found.append(self._case("disturbed", f"{strength:g}, seed {seed}", disturbed.plan(goal)))
        return found

    def _case(self, kind: str, label: str, plan: ModelPlan) -> Case:
        options, predicted = self.allocator.sensitivity.options, 0.0
        for layer in plan.tensors:
            for chosen in layer.candidates.items():
                predicted += next(one.loss[one.axis] for one in options[layer.name] if (one.axis, one.grid) == chosen)
        return Case(kind, label, plan, self.allocator.file_size(plan), predicted)

    def _disturbed(self, strength: float, seed: int) -> Sensitivity:
        """One factor for all options of a tensor: its rank among them stays, its worth beside other tensors does not."""
        rng, options = np.random.default_rng(seed), {}
        for name, records in self.allocator.sensitivity.options.items():
            factor = float(np.exp(strength * rng.standard_normal()))
            options[name] = [replace(one, loss={axis: factor * loss for axis, loss in one.loss.items()}) for one in records]
        return replace(self.allocator.sensitivity, options=options)

    def _uniform(self, goal: int) -> list[Case]:
        """For each grid that all linears can have, the tables' grid that comes nearest to the size; nearest first."""
        options = self.allocator.sensitivity.options
        held = {
            name: {(one.axis, one.grid): one for one in records if not one.float_columns} for name, records in options.items()
        }
        linears, tables = ([name for name in held if (name in TABLES) == wanted] for wanted in (False, True))
        best: dict[object, Case] = {}
        for linear, table in product(held[linears[0]], held[tables[0]]):
            chosen = dict.fromkeys(linears, linear) | dict.fromkeys(tables, table)
            if not all(choice in held[name] for name, choice in chosen.items()):
                continue
            layers = []
            for name, spec in self.source.specs.items():
                one = held[name][chosen[name]] if name in chosen else None
                grids = {} if one is None or one.grid is None else {one.axis: one.grid}
                layers.append(TensorPlan(name, spec.shape, grids, turn=None if one is None else one.turn))
            (_, grid), (_, table_grid) = linear, table
            assert grid is not None and table_grid is not None
            label = f"{grid.name} {grid.bits_per_weight:g}, {table_grid.name} {table_grid.bits_per_weight:g}"
            case = self._case("uniform", label, ModelPlan(self.allocator.config, self.allocator.target, layers))
            if abs(case.size - goal) < min(NEAR * goal, abs(best[linear].size - goal) if linear in best else goal):
                best[linear] = case
        return sorted(best.values(), key=lambda case: abs(case.size - goal))


def planned_size(source: Checkpoint, plan: ModelPlan) -> int:
    """Bytes of the file that a plan ends in."""
    with planned_store(source, plan) as store:
        return writer_of(plan.target.name).size(store)


def statistics(source: Checkpoint, data: DataSpec) -> Mapping[str, InputStats]:
    """Of every tensor, once for all plans; of the second moments only the diagonals, which are all that rounding asks for."""
    tokens, _ = calibration_data(data, source)
    curvature = measure_curvature(source, tokens, data.seed)
    found = {name: replace(stats, hessian=stats.importance.copy()) for name, stats in curvature.tables.items()}
    for run in track(walk_blocks(source, tokens, curvature, 0), "statistics", source.config.num_layers):
        found |= {name: replace(stats, hessian=stats.importance.copy()) for name, stats in run.stats.items()}
    return found


def rounded_runner(source: Checkpoint, plan: ModelPlan, known: Mapping[str, InputStats]) -> TorchRunner:
    """The source with every planned weight rounded in it."""
    orders, layers = RowOrders(source.config, plan.target.row_order), {layer.name: layer for layer in plan.tensors}

    def rounded(name: str) -> F32:
        weight = source.read(name)
        turn = layers[name].turn
        for axis, grid in layers[name].candidates.items():
            rows = turned(orders.to_target(name, weight), turn)
            stats = known[name] if turn is None else known[name].turned(turn)
            step = TABLE_STEP if name in TABLES else len(rows)
            parts = [rows[start : start + step] for start in range(0, len(rows), step)]
            values = [dequantize(ROUNDERS["search"](name, part, grid, axis, stats)) for part in parts]
            weight = orders.to_source(name, turned_back(np.concatenate(values), turn))
        return weight

    weights = dict(zip(source.specs, in_threads(rounded, source.specs), strict=True))
    return TorchRunner(build_model(source.config, weights.__getitem__, source.tied), DECODED)


def divergence(base: Sequence[F32], runner: Runner, chunks: I64) -> float:
    """Mean KL divergence in nats per token from the source, whose ``scored_logits`` are ``base``."""
    half = chunks.shape[1] // 2
    pairs = zip(base, chunks, strict=True)
    return float(join([compare(own, predictions(runner, tokens), tokens[half:]) for own, tokens in pairs]).kl.mean())


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; what is equal shares its mean rank."""
    ranks = [(values[:, None] > values).sum(1) + (values[:, None] >= values).sum(1) for values in map(np.asarray, (one, other))]
    return float(np.corrcoef(*ranks)[0, 1])


def scatter(cases: Sequence[Case], measured: Sequence[float]) -> str:
    """An SVG with both axes alike and logarithmic; on the dashed line the two agree."""
    values = [*measured, *(case.predicted for case in cases)]
    low, high = np.log(min(values) / 1.1), np.log(max(values) * 1.1)

    def place(value: float) -> float:
        return float(SIDE * (np.log(value) - low) / (high - low))

    def text(x: float, y: float, words: str, extra: str = 'text-anchor="middle"') -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" {extra}>{words}</text>'

    end, half, out = MARGIN + SIDE, MARGIN + SIDE / 2, list[str]()
    ticks = [n * 10.0**power for power in range(-9, 3) for n in (1, 1.5, 2, 3, 5, 7)]
    for tick in (tick for tick in ticks if 0 <= place(tick) <= SIDE):
        x, y = MARGIN + place(tick), end - place(tick)
        out.append(f'<path d="M{x:.1f} {end}V{MARGIN}M{MARGIN} {y:.1f}H{end}" stroke="{GREY}" stroke-opacity=".25"/>')
        out += [text(x, end + 18, f"{tick:g}"), text(MARGIN - 6, y + 4, f"{tick:g}", 'text-anchor="end"')]
    out.append(f'<path d="M{MARGIN} {end}L{end} {MARGIN}" stroke="{GREY}" stroke-dasharray="4 4"/>')
    for case, value in zip(cases, measured, strict=True):
        x, y, title = MARGIN + place(case.predicted), end - place(value), f"<title>{case.kind} {case.label}</title>"
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLOURS[case.kind]}">{title}</circle>')
    for index, (kind, colour) in enumerate(COLOURS.items()):
        out.append(f'<circle cx="{MARGIN + 14 + 110 * index}" cy="{MARGIN - 20}" r="5" fill="{colour}"/>')
        out.append(text(MARGIN + 24 + 110 * index, MARGIN - 16, kind, 'text-anchor="start"'))
    out.append(text(half, end + 42, "predicted KL divergence, nats per token"))
    out.append(text(16, half, "measured", f'text-anchor="middle" transform="rotate(-90 16 {half:g})"'))
    frame = f'viewBox="0 0 {end + 20} {end + MARGIN}" font-family="sans-serif" font-size="12" fill="{GREY}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {frame}>', *out, "</svg>\n"])


def main(args: argparse.Namespace) -> None:
    """Print the table, and draw it."""
    source, target = open_checkpoint(args.model), TARGETS[args.target]
    around = Around(float_columns=0)  # which decoded weights in torch have not
    config = QuantizeConfig("search-ada", data=DataSpec(args.calibration, args.calibration_tokens), around=around)
    chunks = text_chunks(source, load_text(args.text).text, EvalOptions(chunks=args.chunks))
    sensitivity = read_sensitivity(args.sensitivity, source, target)
    allocator = Allocator(source, config, target, sensitivity, lambda plan: planned_size(source, plan))
    cases = Planner(source, allocator).cases(args.target_size, args.plans)
    known, runner = statistics(source, config.data), source_runner(source, chunks.shape[1])
    base = [predictions(runner, tokens) for tokens in chunks]
    runner.close()
    print("| plan | MB | predicted | measured |\n|---|---|---|---|", flush=True)
    measured = []
    for case in cases:
        measured.append(divergence(base, rounded_runner(source, case.plan, known), chunks))
        row = f"| {case.kind} {case.label} | {case.size / 1e6:.2f} | {case.predicted:.4f} | {measured[-1]:.4f} |"
        print(row, flush=True)
    logs = np.log(np.divide(measured, [case.predicted for case in cases]))
    print(f"\nSpearman's rank correlation {rank_correlation([case.predicted for case in cases], measured):.3f};", end=" ")
    print(f"measured / predicted {np.exp(logs.mean()):.2f}, times or by {np.exp(logs.std()):.2f}")
    if args.svg is not None:
        with new_file(args.svg, force=True) as file:
            file.write(scatter(cases, measured).encode())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("sensitivity", type=Path, help="made by `adadim sensitivity`")
    parser.add_argument("text", help="UTF-8 text to measure on, not calibrated on")
    parser.add_argument("--target", choices=tuple(TARGETS), default="llama.cpp")
    parser.add_argument("--target-size", type=file_size, required=True, metavar="SIZE", help="as 90MB")
    parser.add_argument("--plans", type=positive, default=14, metavar="N")
    parser.add_argument("--chunks", type=positive, default=4, metavar="N", help="of 512 tokens")
    parser.add_argument("--calibration", default=DataSpec.text, metavar="FILE")
    parser.add_argument("--calibration-tokens", type=positive, default=DataSpec.tokens, metavar="N")
    parser.add_argument("--svg", type=Path, metavar="OUT.svg")
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
