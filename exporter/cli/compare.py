"""``adadim compare`` and ``adadim eval``: their options, and the text that is measured on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from exporter.cli.parser import OneLineParser, Subparsers, add_common, command
from exporter.cli.values import file_path, positive, text_path
from quantize.config import BUILTIN
from quantize.errors import CalibrationError, ConfigError
from quantize.statistics.calibration import CalibrationText, held_out_text, load_text


def add_compare(commands: Subparsers) -> None:
    """``adadim compare``."""
    example = "adadim compare a.gguf b.gguf ./onnx --source ./SmolLM2-135M --text held-out.txt --chunks 12"
    summary = "measure files of any tool side by side; exit code 1 if one of them cannot be measured"
    parser = command(commands, "compare", summary, example)
    parser.add_argument("paths", metavar="FILE.gguf|DIR", type=file_path, nargs="+", help="GGUF files and ONNX folders")
    parser.add_argument("--source", type=file_path, help="the model they were made from (default: only size, grids and speed)")
    _add_measured_on(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="what they go on with, greedily (default: The capital of France is)")
    parser.add_argument("--json", type=file_path, metavar="FILE", help="write the rows here (default: none)")
    parser.add_argument("--html", type=file_path, metavar="FILE", help="write a page with a plot here (default: none)")
    add_common(parser)


def add_eval(commands: Subparsers) -> None:
    """``adadim eval``."""
    example = "adadim eval model.gguf --source ./SmolLM2-135M --text held-out.txt --chunks 12"
    parser = command(commands, "eval", "measure perplexity and KL divergence to the source, in the file's runtime", example)
    parser.add_argument("path", metavar="FILE.gguf|DIR", type=file_path, help="a GGUF or an ONNX folder")
    parser.add_argument("--source", type=file_path, required=True, help="the model it was made from")
    _add_measured_on(parser)
    parser.add_argument(
        "--activations",
        metavar="WORD|PATTERN=WORD,...",
        help="with --weights-only, simulate inputs of the decoder blocks' linears rounded: a8, a6 or a4, -block32, -token or "
        "-tensor; file, as the file says; or clips:DIR, as `adadim finetune` learned it (default: not rounded)",
    )
    parser.add_argument("--json", type=file_path, metavar="FILE", help="write the result here (default: none)")
    add_common(parser)


def _add_measured_on(parser: OneLineParser) -> None:
    """The text and how much of it is read."""
    add_measured_text(parser, BUILTIN)
    parser.add_argument("--context", type=positive, default=512, metavar="N", help="tokens a chunk (default: %(default)s)")
    parser.add_argument("--chunks", type=positive, metavar="N", help="(default: the whole text)")
    parser.add_argument("--weights-only", action="store_true", help="run the decoded weights in torch (default: the runtime)")


def add_measured_text(parser: argparse._ActionsContainer, default: str | None) -> None:
    """--text; ``default`` as it is in the arguments."""
    parser.add_argument(
        "--text",
        type=text_path,
        metavar="FILE|builtin",
        default=default,
        help="UTF-8 text that was not calibrated on (default: the end of the built-in one, which flatters)",
    )


def measuring_text(word: str) -> CalibrationText:
    """What --text names. Raises CalibrationError."""
    if word != BUILTIN:
        return load_text(word)
    return CalibrationText("builtin, its held-out end", held_out_text(), "")


@contextmanager
def naming(text: CalibrationText) -> Iterator[None]:
    """What is wrong with a text is said with its name, which those who measure need not know."""
    try:
        yield
    except CalibrationError as error:
        raise CalibrationError(f"{text.name}: {error}") from error


def check_compare(args: argparse.Namespace) -> None:
    """Raises ConfigError for options that do nothing without a source."""
    if args.html is not None:
        import_module("vl_convert")  # what is not installed is said before the work, not after it
    if args.source is None and (args.text != BUILTIN or args.prompt is not None or args.chunks is not None or args.weights_only):
        raise ConfigError("--text, --chunks, --prompt and --weights-only compare with a source; name it with --source DIR")
