"""``adadim convert``, and what ``run`` does first with a folder whose decoder is known by no name: a GGUF of its floats."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.cli.parser import OneLineParser, Subparsers, add_common, command
from exporter.cli.process import say
from exporter.cli.summary import table
from exporter.cli.values import file_path

if TYPE_CHECKING:
    from quantize.template.convert import Converted

TEMPLATE = "source.gguf"


def add_convert(commands: Subparsers) -> None:
    """``adadim convert``."""
    example = "adadim convert ./gemma-3-270m --out gemma-3-270m.gguf"
    parser = command(commands, "convert", "write any model as a GGUF of its own floats, by llama.cpp's converter", example)
    parser.add_argument("source", metavar="DIR", type=file_path, help="Hugging Face directory (safetensors)")
    parser.add_argument("--out", metavar="FILE.gguf", type=file_path, required=True, help="file to write")
    parser.add_argument(
        "--tokenizer-pre", metavar="NAME", help="llama.cpp's pre-tokenizer (default: identified by the converter)"
    )
    add_converter(parser)
    add_common(parser)


def add_converter(parser: OneLineParser) -> None:
    """--converter."""
    parser.add_argument(
        "--converter",
        metavar="DIR",
        type=file_path,
        help="llama.cpp checkout whose converter is used (default: the one of `adadim doctor --install converter`)",
    )


def convert_source(args: Namespace) -> int:
    """``adadim convert``."""
    say(_summary(_convert(args, args.out)))
    return 0


def source_path(args: Namespace, out: Path) -> Path:
    """What ``run`` opens: its source, or the GGUF that is made of it in ``out``, or was made by an earlier run. Raises as
    ``convert`` does."""
    if not _needs_template(args.source):
        return Path(args.source)
    path = out / TEMPLATE
    if not _made_before(args, path):
        say(_summary(_convert(args, path)))
    args.tokenizer_pre = None  # said, and in the file
    return path


def _needs_template(path: Path) -> bool:
    """Whether it is a Hugging Face folder of a decoder that is known by no name."""
    from quantize.checkpoint import check_folder
    from quantize.checkpoint.huggingface import is_family
    from quantize.checkpoint.shards import FILE

    if not path.is_dir():
        return False
    check_folder(path)
    return not is_family(FILE.load(path / "config.json", dict[str, Any]))


def _made_before(args: Namespace, path: Path) -> bool:
    from quantize.template.convert import made_of
    from quantize.template.converter import find_converter

    return (
        not args.force and path.is_file() and made_of(path, args.source, find_converter(args.converter), args.tokenizer_pre or "")
    )


def _convert(args: Namespace, out: Path) -> Converted:
    from quantize.template.convert import convert
    from quantize.template.converter import find_converter

    return convert(args.source, out, find_converter(args.converter), args.tokenizer_pre or "", args.force)


def _summary(made: Converted) -> str:
    rows = [("size", f"{made.path.stat().st_size:,} bytes"), ("floats", made.outtype), ("written by", made.by)]
    return table(str(made.path), rows + [(f"left out: {place}", f"{count} tensors") for place, count in made.left_out.items()])
