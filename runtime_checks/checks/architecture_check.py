"""Whether a decoder goes the whole way: a small random model of its config, written for llama.cpp and for onnxruntime in floats,
beside torch; then in 4 bits, through every check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.targets import TARGETS
from exporter.writers import writer_of
from quantize.checkpoint.gguf_template import GgufTemplate
from quantize.checkpoint.gguf_tensors import open_language_model
from quantize.checkpoint.onnx_template import OnnxTemplate
from quantize.checkpoint.template import Template
from quantize.config import DataSpec, QuantizeConfig
from quantize.errors import AdaDimError, CheckpointError
from quantize.run.pipeline import quantize_checkpoint
from quantize.statistics.by_template import gives_gradients
from quantize.template.convert import convert
from quantize.template.converter import Converter
from quantize.template.onnx_convert import convert_onnx, make_twin
from quantize.types import F32, I64
from runtime_checks.checks.verify import verify
from runtime_checks.measure.results import Check

CONFIG = QuantizeConfig("rtn-ada", data=DataSpec(tokens=2048, token_weight="unit"))
COLUMNS = ("model_type", "GGUF: apart", "weighed by", "checks", "ONNX: by", "apart", "weighed by", "checks", "genai")
GENERATES = "genai's tokens = onnxruntime's, as shipped"


@dataclass(frozen=True)
class Went:
    """Of one format. ``by``: who wrote its floats. ``apart``: the largest difference of a logit to torch's by the largest.
    ``weighed``: what tells what errors cost. ``refused``: why there is none of the rest."""

    by: str = ""
    apart: float = np.nan
    weighed: str = ""
    checks: tuple[Check, ...] = ()
    refused: str = ""

    @property
    def missed(self) -> list[Check]:
        """Checks that did not hold."""
        return [check for check in self.checks if not check.ok]


@dataclass(frozen=True)
class Architecture:
    """``gguf`` and ``onnx``: how far a model of that type went."""

    model_type: str
    gguf: Went
    onnx: Went

    def report(self) -> dict[str, Any]:
        """For a program."""
        return {"model_type": self.model_type, "gguf": _report(self.gguf), "onnx": _report(self.onnx)}

    def row(self) -> tuple[str, ...]:
        """Of COLUMNS."""
        gguf, onnx = self.gguf, self.onnx
        generates = any(check.ok for check in onnx.checks if check.name == GENERATES)
        graph = (onnx.by or "–", *_told(onnx), "yes" if generates else "–")
        return (self.model_type, *_told(gguf), *graph)


def _report(went: Went) -> dict[str, Any]:
    if went.refused:
        return {"refused": went.refused}
    missed = [{"name": check.name, "what": check.tensor} for check in went.missed]
    return {"by": went.by, "apart": went.apart, "weighed_by": went.weighed, "checks": len(went.checks), "missed": missed}


def _told(went: Went) -> tuple[str, str, str]:
    if went.refused:
        return "refused", "–", "–"
    return f"{went.apart:.0e}", went.weighed, f"{len(went.checks) - len(went.missed)} of {len(went.checks)}"


def check_architecture(source: Path, work: Path, converter: Converter, pre: str) -> Architecture:
    """``source``: config.json, or a folder with one; of its tokenizer, or of bytes if there is none. ``work``: an empty folder,
    for what is made on the way. ``pre``: the pre-tokenizer if the converter knows none.

    Raises CheckpointError for a config that transformers does not run.
    """
    model_type, twin = make_twin(source, work)
    taught: F32 = np.load(twin / "logits.npy")

    def gguf(path: Path) -> tuple[str, Template]:
        by = convert(twin, path, converter, pre).by
        return by, GgufTemplate(path, *open_language_model(path), twin)  # of known families too

    def onnx(path: Path) -> tuple[str, Template]:
        return convert_onnx(twin, path).by, OnnxTemplate(path, twin)

    return Architecture(model_type, _tried(gguf, work / "model.gguf", twin, taught), _tried(onnx, work / "onnx", twin, taught))


def _tried(write: Callable[[Path], tuple[str, Template]], path: Path, twin: Path, taught: F32) -> Went:
    try:
        by, source = write(path)
        tokens: I64 = np.load(twin / "tokens.npy")
        found = source.logits(tokens)
        apart = float(np.abs(found - taught).max() / np.abs(taught).max())
        target = next(name for name, target in TARGETS.items() if target.writer == source.writer)
        store = quantize_checkpoint(source, path.with_name(f"{path.name}-store"), CONFIG, TARGETS[target])
        out = writer_of(target).write(store, path.with_name(f"{path.name}-out"))
        checks = verify(out, source, store)
    except AdaDimError as error:
        return Went(refused=" ".join(str(error).split()))
    return Went(by, apart, _weighed(source, tokens), tuple(checks))


def _weighed(source: Template, tokens: I64) -> str:
    """What errors are weighed by: gradients where torch runs it and all its weights are found there, else each token's size."""
    from quantize.source import named_model

    if not gives_gradients(source):
        return "size"
    try:
        named_model(source, tokens[None])
    except CheckpointError:
        return "size"
    return "gradients"
