"""``adadim convert``, and what ``run`` does first with a folder whose decoder is known by no name: a float file as a source."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.cli.parser import OneLineParser, Subparsers, add_common, command
from exporter.cli.process import say
from exporter.cli.summary import table
from exporter.cli.values import file_path
from quantize.errors import ConfigError

if TYPE_CHECKING:
    from quantize.template.converted import Converted

TEMPLATES = {"gguf": "source.gguf", "onnx": "source.onnx"}  # by writer


def add_convert(commands: Subparsers) -> None:
    """``adadim convert``."""
    example = "adadim convert ./gemma-3-270m --out gemma-3-270m.gguf"
    parser = command(commands, "convert", "write any model in its own floats, as a source: by its target's own tools", example)
    parser.add_argument("source", metavar="DIR", type=file_path, help="Hugging Face directory (safetensors)")
    parser.add_argument("--out", metavar="PATH", type=file_path, required=True, help="FILE.gguf or folder to write")
    parser.add_argument(
        "--format",
        choices=tuple(TEMPLATES),
        default="gguf",
        help="gguf by llama.cpp's converter, onnx by the first tool whose graph computes what torch does (default: %(default)s)",
    )
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
    if args.format != "gguf":
        given = {"--tokenizer-pre": args.tokenizer_pre, "--converter": args.converter}
        for option in (option for option, value in given.items() if value is not None):
            raise ConfigError(f"{option}: is for GGUF files; drop it, or --format {args.format}")
    say(_summary(_convert(args, args.out, args.format)))
    return 0


def needs_template(path: Path) -> bool:
    """Whether it is a Hugging Face folder of a decoder that is known by no name, or of weights that are quantized in a way that
    the converter reads. Raises CheckpointError for no model at all."""
    from quantize.checkpoint import check_folder
    from quantize.checkpoint.huggingface import is_family
    from quantize.checkpoint.shards import FILE
    from quantize.foreign import quantized_by
    from quantize.kinds import is_template
    from quantize.template.convert import UNPACKED

    if not path.is_dir() or is_template(path):
        return False
    check_folder(path)
    raw = FILE.load(path / "config.json", dict[str, Any])
    return (quantized_by(raw) or "").lower() in UNPACKED or not is_family(raw)


def is_packed(path: Path) -> bool:
    """Whether it is a folder of quantized weights, which torch would not run as the floats that are made of them."""
    from quantize.checkpoint.huggingface import is_quantized
    from quantize.kinds import is_template

    return path.is_dir() and not is_template(path) and is_quantized(path)


def template_path(args: Namespace, out: Path, writer: str) -> Path:
    """What is made of ``run``'s source in ``out`` for that writer, or was made by an earlier run. Raises as ``convert`` does."""
    path = out / TEMPLATES[writer]
    if not _made_before(args, path, writer):
        say(_summary(_convert(args, path, writer)))
    return path


def _made_before(args: Namespace, path: Path, writer: str) -> bool:
    if args.force or not path.exists():
        return False
    if writer == "onnx":
        from quantize.template.onnx_convert import made_of as onnx_made_of

        return onnx_made_of(path, args.source)
    from quantize.template.convert import made_of
    from quantize.template.converter import find_converter

    return path.is_file() and made_of(path, args.source, find_converter(args.converter), args.tokenizer_pre or "")


def _convert(args: Namespace, out: Path, writer: str) -> Converted:
    if writer == "onnx":
        from quantize.template.onnx_convert import convert_onnx

        return convert_onnx(args.source, out, args.force)
    from quantize.template.convert import convert
    from quantize.template.converter import find_converter

    return convert(args.source, out, find_converter(args.converter), args.tokenizer_pre or "", args.force)


def _summary(made: Converted) -> str:
    rows = [("size", f"{made.nbytes:,} bytes"), ("floats", made.outtype), ("written by", made.by)]
    return table(str(made.path), rows + [(f"left out: {place}", f"{count} tensors") for place, count in made.left_out.items()])
