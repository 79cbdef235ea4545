"""``adadim check-architecture``: how far a small random model of a config goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.cli.convert import add_converter
from exporter.cli.parser import Subparsers, add_quiet, command
from exporter.cli.summary import Row, table
from exporter.cli.values import file_path

MOST = 3  # misses that are told of a format
PRE = "gpt-2"  # where the converter knows none: what its strings are cut by does not matter to a random model


def add_check_architecture(commands: Subparsers) -> None:
    """``adadim check-architecture``."""
    example = "adadim check-architecture ./my-model/config.json"
    told = "make a small random model of a config, write it for llama.cpp and onnxruntime, and compare both with torch"
    parser = command(commands, "check-architecture", told, example)
    parser.add_argument("source", metavar="CONFIG", type=file_path, help="config.json, or a folder with one (and a tokenizer)")
    add_converter(parser)
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")
    add_quiet(parser)


def architecture_table(report: Mapping[str, Any]) -> str:
    """For a person, of what ``Architecture.report`` gives."""
    rows = [row for name in ("gguf", "onnx") for row in _rows(name.upper(), report[name])]
    return table(report["model_type"], rows)


def _rows(name: str, went: Mapping[str, Any]) -> list[Row]:
    if "refused" in went:
        return [(name, f"refused: {went['refused']}")]
    held = f"{went['checks'] - len(went['missed'])} of {went['checks']} checks hold in 4 bits"
    told = f"by {went['by']}; floats {went['apart']:.1e} from torch's logits; weighed by {went['weighed_by']}; {held}"
    return [(name, told), *((f"{name} missed", f"{one['name']}: {one['what']}") for one in went["missed"][:MOST])]
