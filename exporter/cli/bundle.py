"""``adadim bundle`` and ``adadim bundle verify``: their options, and what is printed."""

from __future__ import annotations

import argparse
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from exporter.bundle import verify_bundle
from exporter.bundle.folder import PART_SIZE, BundleOptions, sums_digest, write_bundle
from exporter.bundle.verify_bundle import PLATFORMS
from exporter.cli.parser import OneLineParser, Subparsers, add_common, command
from exporter.cli.summary import table
from exporter.cli.values import file_path, file_size, positive
from exporter.onnx.genai import MAX_LENGTH
from quantize.errors import ConfigError

VERIFY = "bundle verify"  # one word to argparse, which has no command that takes a file or a command
SMALLEST_PART = 10**6


def add_bundle(commands: Subparsers) -> None:
    """Both commands."""
    example = "adadim bundle model.gguf --platform android --out ./bundle"
    parser = command(commands, "bundle", "put a model file, and all that an app needs with it, into a folder and a zip", example)
    _add_inputs(parser)
    _add_facts(parser)
    add_common(parser)
    example = "adadim bundle verify ./bundle --digest $DIGEST"
    parser = command(commands, VERIFY, "check every byte of a bundle; exit code 1 for any problem", example)
    parser.add_argument("path", metavar="DIR", type=file_path, help="what `adadim bundle` wrote")
    parser.add_argument("--digest", type=_digest, metavar="HEX", help="the sha256 of its SHA256SUMS (default: not compared)")


def _add_inputs(parser: OneLineParser) -> None:
    parser.add_argument("path", metavar="FILE.gguf|DIR", type=file_path, help="what `adadim export` wrote")
    parser.add_argument("--platform", choices=tuple(PLATFORMS), required=True, help="where it will run")
    parser.add_argument(
        "--out", metavar="DIR", type=file_path, required=True, help="folder to write; DIR.zip is written beside it"
    )
    parser.add_argument(
        "--context",
        type=positive,
        metavar="N",
        default=MAX_LENGTH,
        help="tokens that an app keeps (default: %(default)s, or the model's limit)",
    )
    parser.add_argument(
        "--part-size",
        type=_part_size,
        metavar="SIZE",
        default=PART_SIZE,
        help=f"larger model files are cut (default: {PART_SIZE >> 20}MiB)",
    )
    parser.add_argument(
        "--custom-op",
        dest="libraries",
        type=_library,
        action="append",
        metavar="ABI=FILE",
        help="native library of MatMulAdaDim built for an ABI; may be repeated (default: none)",
    )


def _add_facts(parser: OneLineParser) -> None:
    parser.add_argument("--licence", metavar="NAME", help="the model's, as apache-2.0 (default: what the GGUF states)")
    parser.add_argument("--licence-text", type=file_path, metavar="FILE", help="its text, to be included (default: none)")
    parser.add_argument("--store", type=file_path, help="the store it was exported from, for its losses (default: none)")
    parser.add_argument(
        "--eval",
        dest="evaluation",
        type=file_path,
        metavar="FILE.json",
        help="what `adadim eval --json` wrote of it (default: none)",
    )


def bundle(args: argparse.Namespace) -> str:
    """Write what the options ask for; what to tell."""
    libraries = dict(args.libraries or ())
    if len(libraries) != len(args.libraries or ()):
        raise ConfigError("--custom-op: names an ABI twice; give one library for each")
    names = ("platform", "context", "part_size", "licence", "licence_text", "store", "evaluation")
    options = BundleOptions(**{name: getattr(args, name) for name in names}, libraries=libraries)
    return _summary(args.out, write_bundle(args.path, args.out, options, args.force))


def verified_bundle(args: argparse.Namespace) -> tuple[int, str]:
    """The exit code, and what to tell."""
    with redirect_stdout(StringIO()) as said:
        code = verify_bundle.report(args.path, args.digest)
    return code, said.getvalue().removesuffix("\n")


def _summary(out: Path, manifest: dict[str, Any]) -> str:
    runtime, generation, files = manifest["runtime"], manifest["generation"], manifest["files"]
    parts = sum(len(file.get("parts", [file])) for file in files)
    rows = [
        ("runs in", f"{runtime['package']}, {runtime['name']} {runtime['minimum_version']} or later"),
        ("model", f"{manifest['model']}, {generation['context']:,} tokens of context"),
        ("bytes", f"{sum(file['bytes'] for file in files):,} in {parts + 2} files"),
        ("libraries", ", ".join(item["abi"] for item in manifest["libraries"]) or "none"),
        ("licence", manifest["licence"]["name"] or "not stated; --licence NAME states it"),
        ("zip", str(out.with_name(out.name + ".zip"))),
        ("digest", f"{sums_digest(out)}  (sha256 of SHA256SUMS: pin it in the app)"),
    ]
    if manifest["quantization"]["target"] == "onnxruntime+adadim" and not manifest["libraries"]:
        rows.append(("note", "without a native library (--custom-op) the model's portable body runs: exact, but slow"))
    return table(str(out), rows)


def _part_size(word: str) -> int:
    size = file_size(word)
    if size < SMALLEST_PART:
        raise argparse.ArgumentTypeError(f"{word!r} is less than {SMALLEST_PART:,} bytes, which makes too many files")
    return size


def _library(word: str) -> tuple[str, Path]:
    abi, found, path = word.partition("=")
    if not (abi and found and path):
        raise argparse.ArgumentTypeError(f"{word!r} is no ABI=FILE, as arm64-v8a=libadadim_ort.so")
    return abi, file_path(path)


def _digest(word: str) -> str:
    if len(word) != 64 or set(word.lower()) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{word!r} is no sha256: 64 digits of 0 to 9 and a to f")
    return word
