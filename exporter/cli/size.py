"""``--target-size`` and what goes with it: the options, and the plan that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from exporter.cli.values import bits_per_weight, file_path, file_size, file_sizes
from exporter.file_size import size_of_bits
from exporter.targets import TARGETS
from exporter.writers import Writer, writer_of
from quantize.config import NOISE, NOISE_LEVELS, NOISE_TOKENS, QuantizeConfig
from quantize.errors import ConfigError
from quantize.planning.plan import ModelPlan, build_plan

if TYPE_CHECKING:
    from quantize.checkpoint import Checkpoint
    from quantize.statistics.measured import Measured


def add_size_options(group: argparse._ArgumentGroup, several: bool) -> None:
    """To ``quantize`` and ``run``, which makes ``several`` files too."""
    sizes = group.add_mutually_exclusive_group()
    if several:
        sizes.add_argument(
            "--sizes",
            type=file_sizes,
            metavar="SIZE,SIZE",
            help="a file of each, from one set of statistics, measured side by side (default: none)",
        )
    sizes.add_argument(
        "--target-size",
        type=file_size,
        metavar="SIZE",
        help="most that the model file may take (ONNX: graph and data), as 80MB (10**6) or 76MiB (2**20) (default: none)",
    )
    sizes.add_argument(
        "--target-bpw", type=bits_per_weight, metavar="X", help="the same in bits for each weight of the model (default: none)"
    )
    group.add_argument(
        "--sensitivity", type=file_path, metavar="FILE.json", help="made by `adadim sensitivity` (default: measured first)"
    )


def noise_levels(args: argparse.Namespace) -> int:
    """How many ``--by noise`` measures, and on fewer tokens if nobody says on how many; 0 by curvature. Raises ConfigError."""
    if args.by != NOISE:
        if args.noise_levels is not None:
            raise ConfigError(f"--noise-levels {args.noise_levels}: is for --by noise; give that or drop it")
        return 0
    if args.calibration_tokens is None:
        args.calibration_tokens = NOISE_TOKENS
    return args.noise_levels or NOISE_LEVELS


def has_target_size(args: argparse.Namespace) -> bool:
    """Whether grids are chosen for a file's size."""
    return args.target_size is not None or args.target_bpw is not None


def model_plan(args: argparse.Namespace, config: QuantizeConfig, measured: Measured, target_name: str) -> ModelPlan:
    """From options for every tensor alike, or for a file's size. Raises ConfigError, PlanError."""
    source = measured.source
    if has_target_size(args):
        goal = args.target_size if args.target_bpw is None else size_of_bits(source.specs, args.target_bpw)
        return size_plans(args, config, measured, target_name, [goal])[0]
    if args.sensitivity is not None:
        raise ConfigError(f"--sensitivity {args.sensitivity}: is for --target-size and --target-bpw; give one or drop it")
    target = TARGETS[target_name]
    return ModelPlan(config, target, build_plan(source.specs, config, target, source.read))


def size_plans(
    args: argparse.Namespace, config: QuantizeConfig, measured: Measured, target_name: str, goals: Sequence[int]
) -> list[ModelPlan]:
    """For files of these sizes in bytes; the sensitivity is read or measured once. Raises ConfigError."""
    from exporter.budget import Allocator, check_free
    from quantize.planning.sensitivity import measure_sensitivity, possible, read_sensitivity

    check_free(config)
    source = measured.source
    target, size = TARGETS[target_name], partial(planned_size, args, source)
    if args.sensitivity is None:
        Allocator(source, config, target, possible(source, target, config), size).plan(min(goals))  # before the work
        sensitivity = measure_sensitivity(measured, config, target)
    else:
        sensitivity = read_sensitivity(args.sensitivity, source, target)
    allocator = Allocator(source, config, target, sensitivity, size)
    return [allocator.plan(goal) for goal in goals]


def planned_size(args: argparse.Namespace, source: Checkpoint, plan: ModelPlan) -> int:
    """Of what `export` makes: with the options of `run`, or the defaults for `quantize`, which has none of them."""
    from quantize.run.pipeline import planned_store

    writer = writer_of(plan.target.name)
    with planned_store(source, plan) as store:
        return writer.size(store, **writer_options(args, writer))


def writer_options(args: argparse.Namespace, writer: Writer) -> dict[str, Any]:
    """What the command says of how ``writer`` writes."""
    return {name: getattr(args, name) for name in writer.options if hasattr(args, name)}
