"""What a file says of its model: as a whole network of decoded weights, and of what was done to them before rounding."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from exporter.inspect import inspect
from quantize.architecture.families import expected_shapes
from quantize.checkpoint import Checkpoint
from quantize.checkpoint.gguf_template import GgufTemplate
from quantize.checkpoint.template import Template
from quantize.errors import FileFormatError, shown
from quantize.gguf.names import to_source_name
from quantize.model_config import HEAD, ModelSizes
from quantize.onnx.reader import DOOR
from quantize.store.schema import Digits
from runtime_checks.runtimes import decoded_gguf
from runtime_checks.runtimes.decoded_runner import DecodedRunner
from runtime_checks.runtimes.exported import open_exported
from runtime_checks.runtimes.runners import Runner, TorchRunner
from runtime_checks.runtimes.weights import Weights

FOLDS = "adadim.transforms"  # JSON: a transform's name -> a digit for each layer, 1 where it was applied
TUNING = "adadim.tune_steps"
NUMBER = re.compile(r"[0-9]{1,18}")
DECODED = "torch (decoded)"


def decoded_runner(path: Path, source: Checkpoint, context: int = 512) -> Runner:
    """The weights that the file's bytes decode to, float32 activations, in torch; of a template, in
    its own runtime. Raises FileFormatError."""
    if isinstance(source, GgufTemplate):
        return DecodedRunner(partial(decoded_gguf.write_decoded, path), context, decoded_gguf.exactly, source.runtime)
    if isinstance(source, Template):
        from runtime_checks.runtimes.decoded_onnx import template_runner

        return template_runner(path, source, context)
    return TorchRunner(decoded_model(path, source.config), DECODED)


def decoded_model(path: Path, config: ModelSizes) -> Any:  # noqa: ANN401 - torch is known to quantize.source alone
    """A float32 torch model of the file's decoded weights. Raises FileFormatError."""
    from quantize.source import build_model

    weights = open_exported(path).weights(config)
    check_shapes(path, config, weights)
    return build_model(config, lambda name: weights.part(name).values, HEAD not in weights.shapes)


def check_shapes(path: Path, config: ModelSizes, weights: Weights) -> None:
    """Raises FileFormatError for the first tensor of the model that the file has not, or has in another shape."""
    for name, shape in expected_shapes(config).items():
        held = weights.shapes.get(name)
        if held is None and name != HEAD:
            raise FileFormatError(f"{path}: tensor {name} is missing; export it again")
        if held is not None and held != shape:
            raise FileFormatError(f"{path}: {name} is {held}, the source's is {shape}; name the source that it was made from")


def check_same_model(path: Path, config: ModelSizes) -> None:
    """Raises FileFormatError for a tensor whose shape is not the model's, in a file of any tool and of any type.

    Tensors are known by their names. What goes by another name (genai's builder joins q, k and v) or is missing is left to
    the runtime, which refuses what it cannot run.
    """
    shapes = {to_source_name(item["name"]): tuple(item["shape"]) for item in inspect(path)["tensors"]}
    for name, shape in expected_shapes(config).items():
        held = shapes.get(name, shape)
        if held != shape:
            raise FileFormatError(f"{path}: {name} is {held}, the source's is {shape}; name the source that it was made from")


def folded_layers(path: Path) -> frozenset[int]:
    """Decoder blocks that, as the file says, were scaled or reordered before rounding. Raises FileFormatError."""
    text = open_exported(path).metadata.get(FOLDS, "{}")
    where = f"{path}: {FOLDS} in its metadata"
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""
    digits = DOOR.json(data, where, dict[str, Digits]).values()
    return frozenset(index for each in digits for index, digit in enumerate(each) if digit == "1")


def is_tuned(path: Path) -> bool:
    """Whether, as the file says, scales and norms were tuned after rounding. Raises FileFormatError."""
    steps = open_exported(path).metadata.get(TUNING, 0)
    if isinstance(steps, bool) or not NUMBER.fullmatch(str(steps)):
        raise DOOR.refused(path, f"{TUNING} in its metadata is '{shown(steps)}', no number of steps")
    return int(steps) > 0
