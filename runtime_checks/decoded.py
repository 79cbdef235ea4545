"""An exported file as floats again: its bytes through the reference, under Hugging Face names and row order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from quantize.checkpoint.gguf_names import to_gguf_name
from quantize.checkpoint.row_order import hf_row_index
from quantize.errors import FileFormatError
from quantize.model_config import HEAD, ModelConfig
from quantize.types import F32
from runtime_checks.onnx_runner import load_graph, model_path
from runtime_checks.reference import DamagedFileError
from runtime_checks.reference_gguf import GgufFile, decode_gguf, read_gguf
from runtime_checks.reference_onnx import OnnxTensor, read_onnx

TRANSPOSED = "_ic"  # ending of the name of a tensor that a gguf-adadim file stores as [IC, OC]


class Weights(Protocol):
    """What a file holds; ``read`` raises FileFormatError for a name that it does not hold."""

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""

    def read(self, name: str) -> F32:
        """One tensor by its Hugging Face name, in Hugging Face row order."""


class GgufWeights:
    """A GGUF's tensors; q and k rows of llama put back in order, ``.weight_ic`` turned back."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self._path, self._config, self._file = path, config, open_gguf(path)

    @property
    def tied(self) -> bool:
        """See Weights."""
        return to_gguf_name(HEAD) not in self._file.tensors

    def read(self, name: str) -> F32:
        """See Weights."""
        stored = to_gguf_name(name)
        if stored in self._file.tensors:
            weight = decode_gguf(self._file.tensors[stored])
        elif stored + TRANSPOSED in self._file.tensors:
            weight = decode_gguf(self._file.tensors[stored + TRANSPOSED]).T
        else:
            raise FileFormatError(f"{self._path}: tensor {stored} is missing; export it again")
        heads = self._config.rotary_heads(name)
        ordered: F32 = weight if heads is None else weight[hf_row_index(len(weight), heads)]
        return ordered


class OnnxWeights:
    """An ONNX folder's tensors; q and k rows put back in order if the graph rotates neighbours."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._folder, self._config, self._tensors = folder, config, open_onnx(folder)
        attributes = [item for node in load_graph(folder).graph.node for item in node.attribute]
        self._interleaved = any(item.name == "rotary_interleaved" and item.i for item in attributes)

    @property
    def tied(self) -> bool:
        """See Weights."""
        return HEAD not in self._tensors

    def read(self, name: str) -> F32:
        """See Weights."""
        if name not in self._tensors:
            raise FileFormatError(f"{self._folder}: tensor {name} is missing; export it again")
        try:
            weight = self._tensors[name].decode()
        except DamagedFileError as error:
            raise FileFormatError(f"{error}; export it again") from error
        heads = self._config.rotary_heads(name)
        ordered: F32 = weight[hf_row_index(len(weight), heads)] if self._interleaved and heads else weight
        return ordered


def open_weights(path: Path, config: ModelConfig) -> Weights:
    """The decoded tensors of a GGUF or an ONNX folder, each read when asked for. Raises FileFormatError."""
    return OnnxWeights(path, config) if path.is_dir() else GgufWeights(path, config)


def decoded_model(path: Path, config: ModelConfig) -> Any:  # noqa: ANN401 - torch is known to source_model alone
    """A float32 torch model of the file's decoded weights. Raises FileFormatError."""
    from quantize.source_model import build_model

    weights = open_weights(path, config)
    read: Callable[[str], F32] = weights.read
    return build_model(config, read, weights.tied)


def open_gguf(path: Path) -> GgufFile:
    """The GGUF's header and mapped tensors. Raises FileFormatError."""
    try:
        return read_gguf(path)
    except FileNotFoundError as error:
        raise FileFormatError(f"{path}: not there; give a GGUF or a folder that `adadim export` wrote") from error
    except DamagedFileError as error:
        raise FileFormatError(f"{error}; export it again") from error


def open_onnx(folder: Path) -> dict[str, OnnxTensor]:
    """Every weight of an ONNX folder, read when asked for. Raises FileFormatError."""
    model_path(folder)
    try:
        return read_onnx(folder)
    except DamagedFileError as error:
        raise FileFormatError(f"{error}; export it again") from error


def transposed_names(path: Path) -> list[str]:
    """Tensors of a GGUF that are stored transposed, which only gguf-adadim files have. Raises FileFormatError."""
    return [name for name in open_gguf(path).tensors if name.endswith(TRANSPOSED)]


def exported_bytes(path: Path) -> int:
    """Bytes of a GGUF, or of model.onnx and every external data file that it names."""
    if not path.is_dir():
        return path.stat().st_size
    model = load_graph(path)
    tensors = [*model.graph.initializer, *(item.t for node in model.graph.node for item in node.attribute if item.HasField("t"))]
    names: set[str] = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return model_path(path).stat().st_size + sum((path / name).stat().st_size for name in names)
