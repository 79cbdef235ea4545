"""model.onnx as a graph whose bytes are read when asked for: the protobuf through ``onnx``, external data by ourselves."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from runtime_checks.reference.decode import U8, Array, DamagedFileError, unpack

FLOATS: dict[int, tuple[str, str]] = {
    TensorProto.FLOAT: ("F32", "<f4"),
    TensorProto.FLOAT16: ("F16", "<f2"),
    TensorProto.BFLOAT16: ("BF16", "<u2"),
}
INTEGERS: dict[int, str] = {TensorProto.UINT8: "<u1", TensorProto.INT8: "<i1", TensorProto.INT32: "<i4", TensorProto.INT64: "<i8"}
NUMBERS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.INT64: "int64_data",
}  # where a tensor's values stand one by one; else:
WORDS = "int32_data"  # whatever the type, one value in each
TRANSPARENT = ("Reshape", "Unsqueeze", "Identity")  # operators that leave the values as they are
LARGEST = 2**31 - 1
_NUMBER = re.compile(r"[0-9]{1,18}")


class Graph:
    """The model without its data, and its data on demand. Raises DamagedFileError, as all that it does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "model.onnx"
        if not self.path.is_file():
            raise DamagedFileError(f"{self.path}: is no file")
        try:
            self.model = onnx.load(self.path, load_external_data=False)
        except Exception as error:  # protobuf's DecodeError; its class moved between versions
            raise self.damaged(f"is no ONNX model ({error})") from error
        self._check_texts()
        graph = self.model.graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        if len(self.initializers) != len(graph.initializer):
            raise self.damaged("two initializers have one name")
        self.producers: dict[str, onnx.NodeProto] = {}
        for node in graph.node:
            for name in filter(None, node.output):
                if name in self.producers or name in self.initializers:
                    raise self.damaged(f"{name[:80]} is made twice")
                self.producers[name] = node
        self.named, self.readers = _by(graph.node, lambda node: [node.name]), _by(graph.node, lambda node: node.input)
        self.map = cache(partial(np.memmap, dtype=np.uint8, mode="r"))

    def damaged(self, problem: str) -> DamagedFileError:
        """To be raised."""
        return DamagedFileError(f"{self.path}: {problem[:400]}")

    def resolve(self, name: str) -> TensorProto:
        """The initializer behind an input, looking through what leaves its values as they are."""
        seen = {name}
        while name in self.producers and _keeps_values(self.producers[name]) and self.producers[name].input:
            name = self.producers[name].input[0]
            if name in seen:
                raise self.damaged(f"{name[:80]} is made of itself")
            seen.add(name)
        if name not in self.initializers:
            raise self.damaged(f"{name[:80]} should be an initializer")
        tensor: TensorProto = self.initializers[name]
        return tensor

    def read(self, name: str) -> Array:
        """The values of the initializer behind an input."""
        return self.array(self.resolve(name))

    def fitted(self, name: str, shape: tuple[int, ...], kind: str) -> Array:
        """The same as ``shape``, of numpy's ``kind`` "u", "i" or "f"."""
        tensor = self.resolve(name)
        if math.prod(tensor.dims) != math.prod(shape):
            raise self.damaged(f"{tensor.name[:80]} has the shape {list(tensor.dims)}, not {list(shape)}")
        found = self.array(tensor)
        if found.dtype.kind != kind or tensor.data_type == TensorProto.BFLOAT16:
            raise self.damaged(f"{tensor.name[:80]} is of type {tensor.data_type}")
        return found.reshape(shape)

    def integers(self, node: onnx.NodeProto, *names: str, **defaults: int) -> dict[str, int]:
        """Attributes of a node from 0 to 2**31 - 1; those in ``defaults`` may be missing."""
        held = {item.name: item for item in node.attribute}
        out = dict(defaults)
        for name in (*names, *defaults):
            item = held.get(name)
            if item is None and name in defaults:
                continue
            if item is None or item.type != onnx.AttributeProto.INT or not 0 <= item.i <= LARGEST:
                raise self.damaged(f"{node.name[:80]} has no {name} that is a size")
            out[name] = item.i
        return out

    def array(self, tensor: TensorProto) -> Array:
        """Stored values in their shape: BF16 as uint16 bits, 4-bit integers one in a byte."""
        shape, name, kind = tuple(tensor.dims), tensor.name[:80], tensor.data_type
        if any(not 0 <= length <= LARGEST for length in shape) or len(shape) > 16:
            raise self.damaged(f"{name} has the shape {list(shape)[:20]}")
        size = math.prod(shape)
        code = "<u1" if kind == TensorProto.UINT4 else FLOATS[kind][1] if kind in FLOATS else INTEGERS.get(kind)
        if code is None:
            raise self.damaged(f"{name} is of type {kind}, which is not read here")
        dtype = np.dtype(code)
        needed = -(-size // 2) if kind == TensorProto.UINT4 else size * dtype.itemsize
        data = self._external(tensor, needed) if tensor.data_location == TensorProto.EXTERNAL else self._inner(tensor, dtype)
        if data.size != needed:
            raise self.damaged(f"{name} has {data.size} bytes for {TensorProto.DataType.Name(kind)}{list(shape)}")
        if kind == TensorProto.UINT4:
            return unpack(data, 4, size).reshape(shape)
        return data.view(dtype).reshape(shape)

    def _inner(self, tensor: TensorProto, dtype: np.dtype[Any]) -> U8:
        if tensor.HasField("raw_data"):
            return np.frombuffer(tensor.raw_data, np.uint8)
        values = np.array(getattr(tensor, NUMBERS.get(tensor.data_type, WORDS)), np.float32 if dtype.kind == "f" else np.int64)
        if tensor.data_type == TensorProto.FLOAT16:  # its bits
            dtype = np.dtype("<u2")
        if dtype.kind in "ui" and values.size and not _fits(values, np.iinfo(dtype)):
            raise self.damaged(f"{tensor.name[:80]} has values that are not of its type")
        return np.ascontiguousarray(values.astype(dtype)).view(np.uint8)

    def _external(self, tensor: TensorProto, needed: int) -> U8:
        """Where no length is stated, what the shape needs."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location, name = PurePosixPath(entries.get("location", "")), tensor.name[:80]
        if not location.parts or location.is_absolute() or ".." in location.parts or "\0" in str(location):
            raise self.damaged(f"{name} points outside of the folder, to {location}")
        if not all(_NUMBER.fullmatch(entries.get(key, "0")) for key in ("offset", "length")):
            raise self.damaged(f"{name} has an offset or a length that is no number")
        file = self.folder / location
        if any((self.folder / part).is_symlink() for part in (location, *location.parents)[:-1]):
            raise DamagedFileError(f"{file}: is a link; {name} is in it")
        if not file.is_file():
            raise DamagedFileError(f"{file}: missing, {name} is in it")
        total, start = file.stat().st_size, int(entries.get("offset", "0"))
        stop = start + int(entries.get("length", needed))
        if not 0 <= start <= stop <= total:
            raise DamagedFileError(f"{file}: {name} is at [{start}, {stop}) of {total} bytes; the file is truncated")
        return np.asarray(self.map(file))[start:stop] if total else np.zeros(0, np.uint8)

    def _check_texts(self) -> None:
        """protobuf gives a text that is not UTF-8 as bytes."""
        waiting: list[Any] = [self.model]
        while waiting:
            for field, value in waiting.pop().ListFields():
                if field.type == field.TYPE_MESSAGE:
                    waiting += [value] if hasattr(value, "ListFields") else value
                    continue
                texts = [value] if isinstance(value, str | bytes) else value
                if field.type == field.TYPE_STRING and any(isinstance(text, bytes) for text in texts):
                    raise self.damaged(f"a {field.name} in it is not UTF-8")


def _fits(values: Array, limits: np.iinfo[Any]) -> bool:
    return bool(limits.min <= values.min() and values.max() <= limits.max)


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
