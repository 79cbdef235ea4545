"""``adadim finetune``: a model trained for inputs of few bits, as a Hugging Face folder."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from exporter.cli.parser import Subparsers, add_common, command
from exporter.cli.process import say, warn
from exporter.cli.summary import Row, table
from exporter.cli.values import file_path, positive, text_path
from quantize.config import BUILTIN
from quantize.finetune import BITS, FinetuneConfig

DEFAULTS = FinetuneConfig()


def add_finetune(commands: Subparsers) -> None:
    """``adadim finetune``."""
    example = "adadim finetune ./SmolLM2-135M --activation-bits 4 --out ./regular\n  adadim run ./regular --out ./phone"
    parser = command(commands, "finetune", "train a model for inputs of few bits, into a Hugging Face folder", example)
    parser.add_argument("source", metavar="SOURCE", type=file_path, help="Hugging Face directory (safetensors) or GGUF file")
    parser.add_argument("--out", metavar="DIR", type=file_path, required=True, help="directory to write")
    parser.add_argument(
        "--activation-bits",
        type=int,
        choices=BITS,
        default=DEFAULTS.activation_bits,
        metavar="N",
        help=f"{BITS[0]} to {BITS[-1]}, of every linear's input (default: %(default)s)",
    )
    parser.add_argument(
        "--kurtosis",
        type=float,
        metavar="X",
        default=DEFAULTS.kurtosis,
        help="nats that each unit of kurtosis of a linear's outputs costs; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=positive, metavar="N", default=DEFAULTS.steps, help="of one sequence each (default: %(default)s)"
    )
    parser.add_argument("--text", type=text_path, metavar=f"FILE|{BUILTIN}", default=BUILTIN, help="UTF-8 (default: %(default)s)")
    parser.add_argument("--seed", type=int, metavar="N", default=DEFAULTS.seed, help="(default: %(default)s)")
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="X",
        default=DEFAULTS.learning_rate,
        help="of the first step; it falls to nothing at the last (default: %(default)s)",
    )
    parser.add_argument(
        "--context", type=positive, metavar="N", default=DEFAULTS.context, help="tokens a sequence (default: %(default)s)"
    )
    add_common(parser)


def finetune_source(args: Namespace) -> int:
    """``adadim finetune``."""
    from quantize import open_checkpoint
    from quantize.finetune import finetune

    names = ("activation_bits", "kurtosis", "steps", "text", "seed", "learning_rate", "context")
    config = FinetuneConfig(**{name: getattr(args, name) for name in names})
    report = finetune(open_checkpoint(args.source), args.out, config, args.force)
    kept = report["steps_kept"]
    if kept < config.steps:
        warn([f"{args.out}: the step after {kept} of {config.steps} was not finite; those before it are kept"])
    say(table(str(args.out), _rows(report)))
    return 0


def _rows(report: Mapping[str, Any]) -> list[Row]:
    loss, bits = report["loss"], report["activation_bits"]
    change = f"{loss['before']:.4f} -> {loss['after']:.4f}"
    rows = [
        ("steps", f"{report['steps_kept']:,} of {report['context']:,} tokens each"),
        ("loss", f"{change} nats a token from the source, with inputs of {bits} bits, on sequences that no step saw"),
        ("inputs as floats", f"{loss['after_inputs_unrounded']:.4f} nats a token"),
        ("left as it is", "embedding, final norm and head"),
        ("means over blocks", "kurtosis of inputs, of outputs and of weights; largest input by root mean square"),
    ]
    return rows + [(kind, _tails(told)) for kind, told in report["linears"].items()]


def _tails(told: Mapping[str, Any]) -> str:
    return "  ".join(f"{of['before']['mean']:7.1f} ->{of['after']['mean']:7.1f}" for of in told.values())
