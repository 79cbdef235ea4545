"""``adadim export``: its formats, and their options."""

from __future__ import annotations

from exporter.cli.parser import OneLineParser, Subparsers, add_common, command
from exporter.cli.values import file_path, file_size, positive

CONTEXT = 4096
DTYPES = ("float32", "float16")


def add_export(commands: Subparsers) -> None:
    """``adadim export``."""
    example = "adadim export gguf ./store --out model.gguf"
    formats = command(commands, "export", "write a store as a file for a runtime", example).add_subparsers(
        dest="format", required=True, metavar="FORMAT"
    )
    gguf = command(formats, "gguf", "write a GGUF for llama.cpp", example)
    gguf.add_argument("store", metavar="STORE", type=file_path, help="directory made by `adadim quantize`")
    gguf.add_argument("--out", metavar="FILE.gguf", type=file_path, required=True, help="file to write")
    add_gguf_options(gguf)
    onnx = command(
        formats, "onnx", "write an ONNX folder for onnxruntime and onnxruntime-genai", "adadim export onnx ./store --out ./onnx"
    )
    onnx.add_argument("store", metavar="STORE", type=file_path, help="directory made by `adadim quantize`")
    onnx.add_argument("--out", metavar="DIR", type=file_path, required=True, help="folder to write")
    add_onnx_options(onnx)
    onnx.add_argument(
        "--with-library",
        action="store_true",
        help="add this machine's kernel of MatMulAdaDim (default: the model's portable body runs, exact but slow)",
    )
    for parser in (gguf, onnx):
        add_split_size(parser)
        add_common(parser)


def add_gguf_options(parser: OneLineParser) -> None:
    """Of what a GGUF is written as."""
    parser.add_argument(
        "--tokenizer-pre", metavar="NAME", help="llama.cpp's pre-tokenizer (default: identified from tokenizer.json)"
    )


def add_split_size(parser: OneLineParser) -> None:
    """Of both formats."""
    parser.add_argument(
        "--split-size",
        type=file_size,
        metavar="SIZE",
        help="most that one file of the model may take, as 2GB: what takes more is split, a GGUF into NAME-00001-of-00003.gguf "
        "and so on, an ONNX folder's data into model.onnx.data, model.onnx.data.1 and so on (default: one file)",
    )


def add_onnx_options(parser: OneLineParser) -> None:
    """Of what an ONNX folder is written as."""
    parser.add_argument(
        "--accuracy-level",
        type=int,
        choices=range(5),
        default=4,
        help="MatMulNBits activations: 4 int8 and fast, 0 or 1 float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--context",
        type=positive,
        metavar="N",
        default=CONTEXT,
        help="tokens that the exported model can hold (default: %(default)s, or the source's limit)",
    )
    parser.add_argument(
        "--onnx-dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="what an ONNX graph computes in: float16 is for GPUs and NPUs (default: %(default)s)",
    )
