"""model.onnx as a graph whose bytes are read when asked for: the protobuf through ``onnx``, external data by ourselves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from runtime_checks.reference import U8, Array, DamagedFileError, unpack

FLOATS: dict[int, tuple[str, str]] = {
    TensorProto.FLOAT: ("F32", "<f4"),
    TensorProto.FLOAT16: ("F16", "<f2"),
    TensorProto.BFLOAT16: ("BF16", "<u2"),
}
INTEGERS: dict[int, str] = {TensorProto.UINT8: "<u1", TensorProto.INT32: "<i4", TensorProto.INT64: "<i8"}
TRANSPARENT = ("Reshape", "Unsqueeze", "Identity")  # operators that leave the values as they are


class Graph:
    """The model without its data, and its data on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "model.onnx"
        try:
            self.model = onnx.load(self.path, load_external_data=False)
        except Exception as error:  # protobuf's DecodeError; its class moved between versions
            raise DamagedFileError(f"{self.path}: is no ONNX model ({error})") from error
        graph = self.model.graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        if len(self.initializers) != len(graph.initializer):
            raise DamagedFileError(f"{self.path}: two initializers have one name")
        self.producers = {output: node for node in graph.node for output in node.output}
        self.named, self.readers = _by(graph.node, lambda node: [node.name]), _by(graph.node, lambda node: node.input)
        self.map = cache(partial(np.memmap, dtype=np.uint8, mode="r"))

    def resolve(self, name: str) -> TensorProto:
        """The initializer behind an input, looking through what leaves its values as they are."""
        while name in self.producers and _keeps_values(self.producers[name]):
            name = self.producers[name].input[0]
        if name not in self.initializers:
            raise DamagedFileError(f"{self.path}: {name} should be an initializer")
        tensor: TensorProto = self.initializers[name]
        return tensor

    def read(self, name: str) -> Array:
        """The values of the initializer behind an input."""
        return self.array(self.resolve(name))

    def array(self, tensor: TensorProto) -> Array:
        """Stored values in their shape: BF16 as uint16 bits, 4-bit integers one in a byte."""
        shape, data = tuple(tensor.dims), self._bytes(tensor)
        size = math.prod(shape)
        if tensor.data_type == TensorProto.UINT4 and data.size == -(-size // 2):
            return unpack(data, 4, size).reshape(shape)
        dtype = np.dtype(FLOATS[tensor.data_type][1] if tensor.data_type in FLOATS else INTEGERS.get(tensor.data_type, "V"))
        if data.size != size * dtype.itemsize:
            kind = TensorProto.DataType.Name(tensor.data_type)
            raise DamagedFileError(f"{self.path}: {tensor.name} has {data.size} bytes for {kind}{list(shape)}")
        return data.view(dtype).reshape(shape)

    def _bytes(self, tensor: TensorProto) -> U8:
        if tensor.data_location != TensorProto.EXTERNAL:
            raw = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
            return np.frombuffer(raw, np.uint8)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = PurePosixPath(entries["location"])
        if location.is_absolute() or ".." in location.parts:
            raise DamagedFileError(f"{self.path}: {tensor.name} points outside of the folder, to {location}")
        file = self.folder / location
        if not file.is_file():
            raise DamagedFileError(f"{file}: missing, {tensor.name} is in it")
        data = np.asarray(self.map(file))
        start = int(entries.get("offset", 0))
        stop = start + int(entries["length"]) if "length" in entries else data.size
        if not 0 <= start <= stop <= data.size:
            raise DamagedFileError(f"{file}: {tensor.name} is at [{start}, {stop}) of {data.size} bytes; the file is truncated")
        return data[start:stop]


def _keeps_values(node: onnx.NodeProto) -> bool:
    """A Cast does if it widens, and float32 is wider than all that these graphs store."""
    if node.op_type == "Cast":
        return [item.i for item in node.attribute if item.name == "to"] == [TensorProto.FLOAT]
    return node.op_type in TRANSPARENT


def _by(nodes: Iterable[onnx.NodeProto], keys: Callable[[onnx.NodeProto], Iterable[str]]) -> dict[str, list[onnx.NodeProto]]:
    out: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in nodes:
        for key in keys(node):
            out[key].append(node)
    return out
