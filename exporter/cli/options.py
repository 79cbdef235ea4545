"""The command line as argparse knows it: commands, options, defaults and one example each."""

from __future__ import annotations

import argparse
from importlib.metadata import version

from exporter.cli.advice import grid_named, target_named
from exporter.cli.architecture import add_check_architecture
from exporter.cli.bench import add_bench
from exporter.cli.bundle import add_bundle
from exporter.cli.checks import add_doctor, add_inspect, add_verify
from exporter.cli.compare import add_compare, add_eval, add_measured_text
from exporter.cli.completion import add_completion
from exporter.cli.convert import add_convert, add_converter
from exporter.cli.data_options import DEFAULTS, add_data_options, add_max_slowdown, add_text_options
from exporter.cli.finetune import add_finetune
from exporter.cli.formats import add_export, add_gguf_options, add_onnx_options, add_split_size
from exporter.cli.methods import add_methods
from exporter.cli.parser import OneLineParser, Subparsers, add_common, command
from exporter.cli.report import add_report
from exporter.cli.size import add_size_options
from exporter.cli.values import file_path, group_size, positive, transform_names, whole, width, widths
from exporter.cli.words import START
from exporter.targets import STATIC_TARGET, TARGETS
from quantize import transforms
from quantize.config import (
    CURVATURE,
    DEFAULT_BITS,
    MOST_LEVELS,
    MOST_NOISE,
    NOISE_LEVELS,
    NOISE_TOKENS,
    RANDOM,
    SENSITIVITIES,
)
from quantize.effort import EFFORTS
from quantize.grids import GRIDS
from quantize.grids.int_affine import SCALE_DTYPES
from quantize.methods import WORDS
from quantize.methods.around import ROUNDER_WORDS
from quantize.types import FINE_BITS

DEFAULT_TARGET = "llama.cpp"
TARGET_HELP = "gguf means llama.cpp, onnx onnxruntime"
DEFAULT_RUN_TARGETS = ("llama.cpp", "onnxruntime")


def build_parser() -> OneLineParser:
    """The parser of ``adadim``; ``args.command`` names the command, ``args.format`` the writer of ``export``."""
    parser = OneLineParser(
        prog="adadim",
        description="Quantize a language model with AdaDim for llama.cpp or ONNX Runtime, write the file, prove it equal.",
        epilog="example: adadim run ./SmolLM2-135M --out ./phone     # every step at once; adadim COMMAND --help tells more; "
        "-o and --output mean --out everywhere",
        start=START,
    )
    parser.add_argument("--version", action="version", version=f"adadim-edge {version('adadim-edge')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    adders = (
        _add_quantize,
        add_export,
        add_verify,
        add_eval,
        add_compare,
        add_report,
        add_inspect,
        _add_run,
        _add_sensitivity,
        _add_imatrix,
        add_finetune,
        add_convert,
        add_check_architecture,
    )
    for add in (*adders, add_bench, add_bundle, add_methods, add_doctor, add_completion):
        add(commands)
    return parser


def _add_quantize(commands: Subparsers) -> None:
    example = "adadim quantize ./SmolLM2-135M --out ./store --target onnxruntime --method gptq-ada --bits 4"
    parser = command(commands, "quantize", "quantize a checkpoint into a store", example)
    _add_source(parser)
    _add_torch(parser)
    written = parser.add_mutually_exclusive_group(required=True)
    written.add_argument("--out", metavar="STORE", type=file_path, help="directory to write")
    written.add_argument("--dry-run", action="store_true", help="only show the plan for a target size (default: quantize)")
    _add_target(parser)
    _add_config_options(parser)
    add_common(parser)


def _add_run(commands: Subparsers) -> None:
    example = "adadim run ./SmolLM2-135M --out ./phone\n  adadim run ./SmolLM2-135M --sizes 80MB,92MB,105MB"
    parser = command(commands, "run", "quantize, export and verify for each target, or each of several sizes", example)
    _add_source(parser)
    _add_torch(parser)
    parser.add_argument(
        "--out", metavar="DIR", type=file_path, help="directory to write; one folder per target (default: ./NAME-adadim)"
    )
    many = f"{TARGET_HELP}; may repeat (default: {' and '.join(DEFAULT_RUN_TARGETS)}; of several sizes or widths the first)"
    parser.add_argument("--target", type=target_named, choices=tuple(TARGETS), action="append", help=many)
    _add_config_options(parser, several=True)
    measured = parser.add_argument_group("what several files are measured on, for compare.json and report.html beside them")
    add_measured_text(measured, default=None)
    measured.add_argument("--chunks", type=positive, metavar="N", help="of 512 tokens (default: 8)")
    add_gguf_options(parser)
    add_split_size(parser)
    add_converter(parser)
    add_onnx_options(parser)
    add_common(parser)


def _add_source(parser: OneLineParser) -> None:
    parser.add_argument("source", metavar="SOURCE", type=file_path, help="Hugging Face directory (safetensors) or GGUF file")


def _add_torch(parser: OneLineParser) -> None:
    parser.add_argument(
        "--torch",
        metavar="DIR",
        type=file_path,
        help="Hugging Face directory of the model of a GGUF, which torch runs for gradients (default: the GGUF, where it can)",
    )


def _add_target(parser: OneLineParser) -> None:
    parser.add_argument(
        "--target",
        type=target_named,
        choices=tuple(TARGETS),
        default=DEFAULT_TARGET,
        help=f"{TARGET_HELP} (default: %(default)s)",
    )


def _add_config_options(parser: OneLineParser, several: bool = False) -> None:
    """``several``: more than one width, or size, may be asked for, as a ladder of files."""
    weights = parser.add_argument_group("what the weights become")
    _add_grid_options(weights, several)
    _add_other_weights(weights)
    _add_table_options(weights)
    add_size_options(parser.add_argument_group("or what the file may take: then every tensor's grid is chosen"), several)
    add_data_options(parser.add_argument_group("what is calibrated on, and how the axis is chosen"))


def _add_grid_options(group: argparse._ArgumentGroup, several: bool) -> None:
    group.add_argument(
        "--effort",
        choices=tuple(EFFORTS),
        default="default",
        help="fast: searched rounding; default: GPTQ weighed by the model's gradients; "
        "best: more text, then rounding learned and scales tuned",
    )
    group.add_argument("--method", choices=WORDS, help="rounding and axis, or a system (default: the effort's)")
    group.add_argument(
        "--rounder",
        choices=ROUNDER_WORDS,
        help="what rounds in a system that leaves that open, as higgs (default: the system's own)",
    )
    told = f"5 on ggml grids only; cmpq: any fraction, as 2.5 (default: {DEFAULT_BITS}, {STATIC_TARGET} {FINE_BITS})"
    if several:
        group.add_argument("--bits", dest="widths", type=widths, metavar="N[,N]", help=f"2, 3, 4, 5, 8, or several; {told}")
    else:
        group.add_argument("--bits", type=width, metavar="N", default=DEFAULTS.grid.bits, help=f"2, 3, 4, 5 or 8; {told}")
    group.add_argument(
        "--grid", type=grid_named, metavar="NAME", help=f"{', '.join(GRIDS)} (default: the target's for these bits)"
    )
    group.add_argument(
        "--group-size",
        type=group_size,
        metavar="N",
        default=DEFAULTS.grid.group_size,
        help="16, 32, 64, 128, 256 or channel, the whole one (default: 32 for GGUF, 64 for ONNX, "
        f"channel for lm and hg grids and {STATIC_TARGET})",
    )
    zeros = f"no zero points (default: asymmetric on the int grid, but for {STATIC_TARGET})"
    group.add_argument("--symmetric", action="store_true", help=zeros)
    group.add_argument(
        "--scale-dtype", choices=SCALE_DTYPES, default=SCALE_DTYPES[0], help="scales of the int grid (default: %(default)s)"
    )


def _add_other_weights(group: argparse._ArgumentGroup) -> None:
    """What is done beside rounding."""
    group.add_argument(
        "--float-columns",
        type=whole,
        metavar="N",
        default=DEFAULTS.around.float_columns,
        help="input channels of each linear that stay in float16, twice as many if it has twice the channels; ONNX "
        "(default: the method's own, or 0)",
    )
    group.add_argument(
        "--transforms",
        type=transform_names,
        metavar="none|all|NAME,...",
        default=DEFAULTS.around.transforms,
        help=f"changes of basis before rounding, where they pay: {', '.join(transforms.NAMES)} (default: none)",
    )


def _add_table_options(group: argparse._ArgumentGroup) -> None:
    """Of the tables of tokens, and of single tensors."""
    group.add_argument(
        "--embedding", type=grid_named, metavar="source|GRID", help="grid, or int4, int8 on ONNX (default: 8 bits of the target)"
    )
    group.add_argument(
        "--head", type=grid_named, metavar="tied|source|GRID", help="(default: tied if the source is, else as the embedding)"
    )
    group.add_argument("--recipe", type=file_path, metavar="FILE.toml", help="rules for single tensors (default: none)")
    group.add_argument(
        "--allow-fallback", action="store_true", help="where a shape fits no block, take what fits and list it (default: refuse)"
    )


def _add_sensitivity(commands: Subparsers) -> None:
    example = "adadim sensitivity ./SmolLM2-135M --target llama.cpp --out sensitivity.json"
    parser = command(commands, "sensitivity", "measure what each grid does to each tensor, for --target-size", example)
    _add_source(parser)
    _add_torch(parser)
    parser.add_argument("--out", metavar="FILE.json", type=file_path, required=True, help="file to write")
    _add_target(parser)
    measured = parser.add_argument_group("what is measured, and on what")
    measured.add_argument(
        "--by",
        choices=SENSITIVITIES,
        default=CURVATURE,
        help="what a tensor's errors cost: by gradients, input by input; or by noise in one tensor after the other "
        "(default: %(default)s)",
    )
    measured.add_argument(
        "--noise-levels",
        type=int,
        choices=range(1, MOST_LEVELS + 1),
        metavar="N",
        help=f"each twice the one before, the last 1/{1 / MOST_NOISE:g} of a tensor's squares (default: {NOISE_LEVELS})",
    )
    add_text_options(measured, f"|{RANDOM}", f"; by noise {NOISE_TOKENS}")
    add_max_slowdown(measured)
    add_common(parser)


def _add_imatrix(commands: Subparsers) -> None:
    example = "adadim imatrix ./SmolLM2-135M --calibration text.txt --out imatrix.gguf"
    parser = command(commands, "imatrix", "run a model over a text and write llama.cpp's importance matrix", example)
    _add_source(parser)
    parser.add_argument("--out", metavar="FILE.gguf", type=file_path, required=True, help="file to write")
    add_text_options(parser.add_argument_group("what is measured on"))
    add_common(parser)
