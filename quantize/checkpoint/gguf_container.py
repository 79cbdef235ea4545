"""The GGUF container, version 3: a bounded parser and the matching encoder. Values stay raw bytes, so they copy verbatim.

::

    "GGUF" | u32 version | u64 tensors | u64 key-values
    key-value: string key | u32 type | payload          string: u64 length | UTF-8 bytes
    array payload: u32 element type | u64 count | elements
    tensor: string name | u32 dims | u64 ne[dims], innermost first | u32 ggml type | u64 offset into the data
    padding to the alignment | data, every tensor padded to the alignment
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

MAGIC, VERSION = b"GGUF", 3
ALIGNMENT_KEY, DEFAULT_ALIGNMENT = "general.alignment", 32
MAX_DIMS = 4


class ValueType(IntEnum):
    """Type of a metadata value."""

    U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


FORMATS: dict[ValueType, str] = {
    **dict(zip(list(ValueType)[: ValueType.STRING], "BbHhIif?", strict=True)),
    **dict(zip(list(ValueType)[ValueType.U64 :], "Qqd", strict=True)),
}


@dataclass(frozen=True)
class Value:
    """One metadata value as the file holds it."""

    type: ValueType
    payload: bytes

    def decode(self) -> Any:  # noqa: ANN401 - a scalar, str or list of either
        """Python's int, float, bool, str or a list of them. Raises ValueError for text that is not UTF-8."""
        if self.type is ValueType.STRING:
            return self.payload[8:].decode()
        if self.type is not ValueType.ARRAY:
            return struct.unpack("<" + FORMATS[self.type], self.payload)[0]
        kind, count = struct.unpack_from("<IQ", self.payload)
        if kind != ValueType.STRING:
            return list(struct.unpack_from(f"<{count}{FORMATS[ValueType(kind)]}", self.payload, 12))
        cursor = Cursor(self.payload, 12)
        return [cursor.string().decode() for _ in range(count)]

    @classmethod
    def encode(cls, kind: ValueType, value: Any) -> Value:  # noqa: ANN401
        """The inverse of ``decode`` for scalars and strings."""
        return cls(kind, _string(value) if kind is ValueType.STRING else struct.pack("<" + FORMATS[kind], value))

    @classmethod
    def encode_array(cls, kind: ValueType, values: Sequence[Any]) -> Value:
        """The inverse of ``decode`` for arrays."""
        head = struct.pack("<IQ", kind, len(values))
        if kind is ValueType.STRING:
            return cls(ValueType.ARRAY, head + b"".join(map(_string, values)))
        return cls(ValueType.ARRAY, head + struct.pack(f"<{len(values)}{FORMATS[kind]}", *values))


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: ``shape`` outermost first, as torch has it; ``offset`` from the start of the data section."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of its blocks, padding not counted."""
        block, size = GGML_QUANT_SIZES[self.type]
        count = 1
        for length in self.shape:
            count *= length
        return count // int(block) * int(size)


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the data; ``data_start`` is the byte at which the data section begins."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    data_start: int


def padded(size: int, alignment: int) -> int:
    """The next multiple of ``alignment``."""
    return -(-size // alignment) * alignment


def alignment_of(metadata: Mapping[str, Value]) -> int:
    """``general.alignment`` or its default. Raises ValueError if it is no power of two."""
    if ALIGNMENT_KEY not in metadata:
        return DEFAULT_ALIGNMENT
    alignment = metadata[ALIGNMENT_KEY].decode()
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"{ALIGNMENT_KEY} {alignment!r} is no power of two")
    return alignment


def parse_header(data: bytes | memoryview) -> GgufHeader:
    """Parse a whole file's bytes (a map will do; the data is not touched). Raises ValueError that says what is wrong."""
    cursor = Cursor(data, 0)
    if cursor.take(4) != MAGIC:
        raise ValueError("no GGUF file")
    version = cursor.number("I")
    if version not in (2, VERSION):
        raise ValueError(f"GGUF version {version} is not supported; supported: 2 and {VERSION}, little-endian")
    n_tensors, n_values = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Value] = {}
    for _ in range(n_values):
        key = cursor.string().decode()
        if key in metadata or not key:
            raise ValueError(f"key {key!r} is empty or twice in it")
        metadata[key] = cursor.value()
    infos = [cursor.tensor_info() for _ in range(n_tensors)]
    tensors = {info.name: info for info in infos}
    if len(tensors) != len(infos):
        raise ValueError("a tensor name is twice in it")
    start = padded(cursor.position, alignment_of(metadata))
    for info in infos:
        if start + info.offset + info.nbytes > len(data):
            raise ValueError(f"truncated: {info.name} ends at byte {start + info.offset + info.nbytes} of {len(data)}")
    return GgufHeader(metadata, tensors, start)


def encode_header(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> bytes:
    """Everything before the data section, padding included."""
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _string(key) + struct.pack("<I", value.type) + value.payload
    for info in tensors:
        out += _string(info.name) + struct.pack("<I", len(info.shape))
        out += struct.pack(f"<{len(info.shape)}Q", *reversed(info.shape)) + struct.pack("<IQ", info.type, info.offset)
    return bytes(out.ljust(padded(len(out), alignment_of(metadata)), b"\0"))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


class Cursor:
    """Reads little-endian bytes forward and never past the end, for which it raises ValueError."""

    def __init__(self, data: bytes | memoryview, position: int) -> None:
        self.data, self.position = data, position

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise ValueError(f"truncated: {self.position} bytes are needed, {len(self.data)} are there")
        return bytes(self.data[start : self.position])

    def number(self, code: str) -> int:
        """The next integer, of struct's ``code``."""
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0])

    def string(self) -> bytes:
        """The next string of GGUF, still encoded."""
        return self.take(self.number("Q"))

    def value(self) -> Value:
        """The next metadata value with its type."""
        kind, start = ValueType(self.number("I")), self.position
        if kind is ValueType.STRING:
            self.string()
        elif kind is not ValueType.ARRAY:
            self.take(struct.calcsize("<" + FORMATS[kind]))
        else:
            self._skip_array()
        return Value(kind, bytes(self.data[start : self.position]))

    def _skip_array(self) -> None:
        kind, count = ValueType(self.number("I")), self.number("Q")
        if kind is ValueType.ARRAY:
            raise ValueError("an array of arrays")
        if kind is not ValueType.STRING:
            self.take(count * struct.calcsize("<" + FORMATS[kind]))
        else:
            for _ in range(count):
                self.string()

    def tensor_info(self) -> TensorInfo:
        """The next tensor's name, shape, type and place."""
        name, dims = self.string().decode(), self.number("I")
        if not 1 <= dims <= MAX_DIMS:
            raise ValueError(f"{name} has {dims} dimensions")
        shape = tuple(self.number("Q") for _ in range(dims))[::-1]
        kind, offset = GGMLQuantizationType(self.number("I")), self.number("Q")
        if shape[-1] % GGML_QUANT_SIZES[kind][0]:
            raise ValueError(f"{name}: rows of {shape[-1]} are no multiple of {kind.name}'s block")
        return TensorInfo(name, kind, shape, offset)
