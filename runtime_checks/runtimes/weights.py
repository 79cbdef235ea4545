"""An exported file's weights as floats again: its bytes through the reference, under Hugging Face names and row order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from quantize.architecture.families import rotary_heads
from quantize.checkpoint.row_order import hf_row_index
from quantize.errors import FileFormatError
from quantize.gguf.names import to_source_name
from quantize.grids import GRIDS
from quantize.model_config import ModelConfig, ModelSizes
from quantize.onnx.reader import read_graph
from quantize.types import F32, Grid
from runtime_checks.reference.decode import FLOAT_BYTES, DamagedFileError
from runtime_checks.reference.gguf import GgufFile, GgufTensor, decode_gguf, read_gguf
from runtime_checks.reference.onnx import read_onnx
from runtime_checks.reference.onnx_sum import whole_weights
from runtime_checks.reference.onnx_tensor import ALL, OnnxTensor
from runtime_checks.runtimes.reading import Reading, reading_of

TRANSPOSED = "_ic"  # ending of the name of a tensor that a gguf-adadim file stores as [IC, OC]
ROPE_FREQS = "rope_freqs.weight"  # llama.cpp's place for Llama 3's rotary scaling, which is no weight
CHUNK_WEIGHTS = 1 << 22  # weights decoded at a time: 16 MB for each decoder


@dataclass(frozen=True, eq=False)
class Part:
    """``values`` F32 of some output channels; ``dtype`` if they are stored as floats ("F16"), else ``bits`` of their codes."""

    values: F32
    dtype: str | None
    bits: int = 0


class Weights(Protocol):
    """What a file holds, under Hugging Face names and in Hugging Face row order."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """(OC, IC) or (n,) of every tensor; one that no decoder has goes by the file's own name."""

    def part(self, name: str, rows: slice = ALL) -> Part:
        """A tensor, or some of its output channels. Raises FileFormatError."""

    def reading(self, name: str) -> Reading:
        """How a linear reads its input. Raises FileFormatError."""


class GgufWeights:
    """A GGUF's tensors; q and k rows of llama put back in order, ``.weight_ic`` turned back."""

    def __init__(self, path: Path, config: ModelSizes) -> None:
        self._config = config
        self._tensors: dict[str, GgufTensor] = {}
        for stored, tensor in open_gguf(path).tensors.items():
            name = to_source_name(stored)
            if stored != ROPE_FREQS or not isinstance(config, ModelConfig):  # of a template a tensor like any other
                self._tensors[stored if name in self._tensors else name] = tensor

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See Weights."""
        return {name: item.shape[::-1] if item.name.endswith(TRANSPOSED) else item.shape for name, item in self._tensors.items()}

    def part(self, name: str, rows: slice = ALL) -> Part:
        """See Weights."""
        tensor, heads = self._tensors[name], rotary_heads(self._config, name)
        order = ALL if heads is None else hf_row_index(self.shapes[name][0], heads)
        if len(tensor.shape) == 1:
            values = decode_gguf(tensor)[order][rows]
        elif tensor.name.endswith(TRANSPOSED):
            values = decode_gguf(tensor).T[order][rows]
        else:
            data = tensor.data.reshape(tensor.shape[0], -1, tensor.data.shape[1])[order][rows]  # an expert has many rows
            values = decode_gguf(replace(tensor, data=data.reshape(-1, data.shape[-1]), shape=(len(data), *tensor.shape[1:])))
        floats = tensor.kind in FLOAT_BYTES
        return Part(values, tensor.kind) if floats else Part(values, None, ggml_grid(tensor.kind).bits)

    def reading(self, name: str) -> Reading:
        """See Weights: a GGUF says nothing of it, and what llama.cpp does is its own."""
        return Reading()


class OnnxWeights:
    """An ONNX folder's tensors."""

    def __init__(self, folder: Path) -> None:
        self._weights = whole_weights(open_onnx(folder))

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See Weights."""
        return {name: weight.shape for name, weight in self._weights.items()}

    def part(self, name: str, rows: slice = ALL) -> Part:
        """See Weights. The width of codes is that of the largest, because 3 bits ride in nodes of 4."""
        weight = self._weights[name]
        tensor = weight.first
        try:
            if tensor.read_floats is not None:
                return Part(weight.whole(tensor.decode(rows), rows), tensor.dtype)
            if len(tensor.shape) > 2:
                return _experts(tensor, rows)
            whole = rows == ALL or (rows.start, rows.stop) == (0, tensor.shape[0])
            held = tensor.codes(ALL if whole else rows)
            values = weight.whole(held.decode() if whole or held.per_oc else tensor.codes().decode(rows), rows)
        except DamagedFileError as error:
            raise FileFormatError(f"{error}; export it again") from error
        return Part(values, None, held.bits)

    def reading(self, name: str) -> Reading:
        """See Weights."""
        try:
            return reading_of(self._weights[name])
        except DamagedFileError as error:
            raise FileFormatError(f"{error}; export it again") from error


def _experts(tensor: OnnxTensor, rows: slice) -> Part:
    """Some experts of a stack. Raises DamagedFileError."""
    first, stop, _ = rows.indices(tensor.shape[0])
    held = tensor.codes(slice(first * tensor.shape[1], stop * tensor.shape[1]))
    return Part(held.decode().reshape(-1, *tensor.shape[1:]), None, held.bits)


def row_chunks(rows: int, cols: int, weights: int = CHUNK_WEIGHTS) -> Iterator[slice]:
    """Slices of a matrix's rows, ``weights`` numbers at a time."""
    step = max(1, weights // cols)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def ggml_grid(kind: str) -> Grid:
    """Our grid for a ggml block type that the reference decodes."""
    grid = GRIDS[kind.lower()]
    assert not isinstance(grid, type)
    return grid


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
    read_graph(folder)
    try:
        return read_onnx(folder)
    except DamagedFileError as error:
        raise FileFormatError(f"{error}; export it again") from error
