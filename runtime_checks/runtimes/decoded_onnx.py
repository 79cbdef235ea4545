"""A template's own graph over what the reference decodes of a file made from it, all in float32."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from quantize.checkpoint.onnx_template import OnnxTemplate
from quantize.checkpoint.template import Template
from quantize.errors import FileFormatError
from quantize.model_config import HEAD
from quantize.onnx.template import FloatWeight, with_head, write_template
from quantize.types import F32
from runtime_checks.runtimes.decoded_runner import DecodedRunner
from runtime_checks.runtimes.onnx_runner import OnnxRunner
from runtime_checks.runtimes.runners import Runner
from runtime_checks.runtimes.weights import OnnxWeights


def template_runner(path: Path, source: Template, context: int) -> Runner:
    """The weights that the folder's bytes decode to, in onnxruntime. Raises FileFormatError."""
    assert isinstance(source, OnnxTemplate), source
    return DecodedRunner(partial(write_decoded, path, source), context, exactly, source.runtime)


def write_decoded(path: Path, source: OnnxTemplate, out: Path) -> None:
    """The folder ``out``. Raises FileFormatError for a file that has not the source's tensors."""
    weights = OnnxWeights(path)
    shapes = {name: spec.shape for name, spec in source.specs.items()}
    own_head = source.tied and HEAD in weights.shapes
    if own_head:
        shapes[HEAD] = weights.shapes[HEAD]
    out.mkdir()
    write_template(out, with_head(source.skeleton, own_head), _floats(path, weights, shapes))


def _floats(path: Path, weights: OnnxWeights, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, FloatWeight]:
    for name, shape in shapes.items():
        if weights.shapes.get(name) != shape:
            told = f"{name} is {weights.shapes.get(name, 'missing')}, the source's is {shape}"
            raise FileFormatError(f"{path}: {told}; name the source that it was made from")
    return {name: FloatWeight(shape, "F32", partial(_decoded, weights, name)) for name, shape in shapes.items()}


def _decoded(weights: OnnxWeights, name: str) -> F32:
    return weights.part(name).values


def exactly(path: Path, context: int) -> Runner:
    """It in onnxruntime."""
    return OnnxRunner(path)
