"""``adadim check-architecture``: how far a small random model of a config goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.cli.convert import add_converter
from exporter.cli.parser import Subparsers, add_common, command
from exporter.cli.summary import Row, table
from exporter.cli.values import file_path

if TYPE_CHECKING:
    from runtime_checks.checks.architecture_check import Architecture, Went

PRE = "gpt-2"  # where the converter knows none: what its strings are cut by does not matter to a random model


def add_check_architecture(commands: Subparsers) -> None:
    """``adadim check-architecture``."""
    example = "adadim check-architecture ./my-model/config.json"
    told = "make a small random model of a config, write it for llama.cpp and onnxruntime, and compare both with torch"
    parser = command(commands, "check-architecture", told, example)
    parser.add_argument("source", metavar="CONFIG", type=file_path, help="config.json, or a folder with one (and a tokenizer)")
    add_converter(parser)
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")
    add_common(parser)


def architecture_table(found: Architecture) -> str:
    """For a person."""
    rows = [*_rows("GGUF", found.gguf), *_rows("ONNX", found.onnx)]
    return table(found.model_type, rows)


def _rows(name: str, went: Went) -> list[Row]:
    if went.refused:
        return [(name, f"refused: {went.refused}")]
    missed = [(f"{name} missed", f"{check.name}: {check.tensor}") for check in went.missed[:3]]
    held = f"{len(went.checks) - len(went.missed)} of {len(went.checks)} checks hold in 4 bits"
    return [(name, f"by {went.by}; floats {went.apart:.1e} from torch's logits; weighed by {went.weighed}; {held}"), *missed]


def architecture_report(found: Architecture) -> dict[str, Any]:
    """For a program; ``apart``: the largest difference of a logit to torch's by the largest."""
    return {
        "model_type": found.model_type,
        **{name: _report(went) for name, went in (("gguf", found.gguf), ("onnx", found.onnx))},
    }


def _report(went: Went) -> dict[str, Any]:
    if went.refused:
        return {"refused": went.refused}
    missed = [{"name": check.name, "what": check.tensor} for check in went.missed]
    return {"by": went.by, "apart": went.apart, "weighed_by": went.weighed, "checks": len(went.checks), "missed": missed}
