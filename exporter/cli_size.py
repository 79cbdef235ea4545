"""``--target-size`` and what goes with it: the options, and the plan that they ask for."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from exporter.cli_values import bits_per_weight, file_path, file_size
from exporter.file_size import size_of_bits
from exporter.targets import GGUF_TARGETS, TARGETS
from quantize.errors import ConfigError
from quantize.plan import ModelPlan, QuantizeConfig, build_plan

if TYPE_CHECKING:
    from quantize.checkpoint import Checkpoint


def add_size_options(group: argparse._ArgumentGroup) -> None:
    """To ``quantize`` and ``run``."""
    sizes = group.add_mutually_exclusive_group()
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


def has_target_size(args: argparse.Namespace) -> bool:
    """Whether grids are chosen for a file's size."""
    return args.target_size is not None or args.target_bpw is not None


def model_plan(args: argparse.Namespace, config: QuantizeConfig, source: Checkpoint, target_name: str) -> ModelPlan:
    """From options for every tensor alike, or for a file's size. Raises ConfigError, PlanError."""
    target = TARGETS[target_name]
    if not has_target_size(args):
        if args.sensitivity is not None:
            raise ConfigError(f"--sensitivity {args.sensitivity}: is for --target-size and --target-bpw; give one or drop it")
        return ModelPlan(config, target, build_plan(source.specs, config, target))
    from exporter.budget import Allocator, check_free
    from quantize.sensitivity import measure_sensitivity, read_sensitivity

    check_free(config)
    goal = args.target_size if args.target_bpw is None else size_of_bits(source.specs, args.target_bpw)
    if args.sensitivity is None:
        sensitivity = measure_sensitivity(source, config, target)
    else:
        sensitivity = read_sensitivity(args.sensitivity, source, target)
    return Allocator(source, config, target, sensitivity, partial(_planned_size, args, source)).plan(goal)


def _planned_size(args: argparse.Namespace, source: Checkpoint, plan: ModelPlan) -> int:
    """Of the file that `export` makes: with the options of `run`, or the defaults for `quantize`, which has none of them."""
    from quantize.pipeline import planned_store

    names = ("tokenizer_pre",) if plan.target.name in GGUF_TARGETS else ("accuracy_level", "context")
    options = {name: getattr(args, name) for name in names if hasattr(args, name)}
    with planned_store(source, plan) as store:
        if plan.target.name in GGUF_TARGETS:
            from exporter.gguf_file import gguf_size

            return gguf_size(store, **options)
        from exporter.onnx_file import onnx_size

        return onnx_size(store, **options)
