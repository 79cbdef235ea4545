"""``adadim report``: its options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exporter.cli.parser import Subparsers, add_common, command
from exporter.cli.values import file_path, text_path


def add_report(commands: Subparsers) -> None:
    """The command; ``args.evaluations`` and ``args.verifications`` are pairs of a name and a file."""
    example = "adadim report ./store model.gguf --compare compare.json --verify model.gguf=verify.json --out report.html"
    parser = command(commands, "report", "put all that is known of files and stores on one page for a browser", example)
    parser.add_argument(
        "models", metavar="FILE.gguf|DIR|STORE", type=file_path, nargs="*", help="show their layers and their bytes"
    )
    parser.add_argument("--out", metavar="FILE.html", type=file_path, required=True, help="file to write; it needs no network")
    _add_results(parser.add_argument_group("what was found of them; a file may be named by the end of its path"))
    _add_closeup(parser.add_argument_group("a picture of one layer's outliers, of the first store that is given"))
    add_common(parser)


def _add_results(group: argparse._ArgumentGroup) -> None:
    repeated: dict[str, Any] = {"action": "append", "default": []}
    group.add_argument(
        "--compare",
        dest="comparisons",
        metavar="FILE.json",
        type=file_path,
        help="of `adadim compare --json`; may repeat",
        **repeated,
    )
    named: dict[str, Any] = {"type": _named, "metavar": "NAME=FILE.json", **repeated}
    group.add_argument("--eval", dest="evaluations", help="of `adadim eval --json` on the file NAME; may repeat", **named)
    group.add_argument("--verify", dest="verifications", help="of `adadim verify --json` on the file NAME; may repeat", **named)
    group.add_argument(
        "--reference",
        dest="references",
        metavar="NAME",
        help="this file is another tool's, drawn to compare with; may repeat",
        **repeated,
    )


def _add_closeup(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--source", metavar="MODEL", type=file_path, help="the model that the store was made from (default: no picture)"
    )
    group.add_argument(
        "--calibration",
        type=text_path,
        metavar="FILE|builtin",
        help="run it over this text for its activations (default: weights alone)",
    )
    group.add_argument("--layer", metavar="NAME", help="as model.layers.0.mlp.down_proj (default: the largest outlier's)")


def _named(word: str) -> tuple[str, Path]:
    name, found, path = word.rpartition("=")
    if not (name and found and path):
        raise argparse.ArgumentTypeError(f"{word!r} is no NAME=FILE.json, as model.gguf=eval.json")
    return name, file_path(path)
