"""What a GGUF's header is made of: metadata values, tensors' entries, and the cursor that reads them within bounds."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

MAX_DIMS, MAX_NAME = 4, 63  # bytes of a name; ggml's GGML_MAX_NAME counts the end too
MAX_ENTRIES = 1 << 16  # of tensors, and of keys: llama.cpp compares each with all before it


class ValueType(IntEnum):
    """Type of a metadata value."""

    U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


FORMATS: dict[ValueType, str] = {
    **dict(zip(list(ValueType)[: ValueType.STRING], "BbHhIif?", strict=True)),
    **dict(zip(list(ValueType)[ValueType.U64 :], "Qqd", strict=True)),
}
SIZES = {kind: struct.calcsize("<" + code) for kind, code in FORMATS.items()}
_U32, _U64, _ARRAY = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQ")
Buffer = bytes | memoryview


@dataclass(frozen=True)
class Value:
    """One metadata value as the file holds it; a view of a mapped file is not copied."""

    type: ValueType
    payload: Buffer

    @property
    def items(self) -> ValueType | None:
        """The type of an array's elements, None for what is no array."""
        return ValueType(_U32.unpack_from(self.payload)[0]) if self.type is ValueType.ARRAY else None

    @property
    def described(self) -> str:
        """ "u32", "string", "array of f32": for messages."""
        return self.type.name.lower() if self.items is None else f"array of {self.items.name.lower()}"

    def decode(self) -> Any:  # noqa: ANN401 - a scalar, str, array or list of str
        """Python's int, float, bool or str; a numpy array of numbers or bools (a view), a list of strings.

        Raises ValueError for text that is not UTF-8.
        """
        if self.type is ValueType.STRING:
            return str(self.payload[8:], "utf-8")
        if self.type is not ValueType.ARRAY:
            return struct.unpack("<" + FORMATS[self.type], self.payload)[0]
        kind, count = _ARRAY.unpack_from(self.payload)
        if kind == ValueType.STRING:
            return _strings(self.payload, 12, count)
        if kind == ValueType.BOOL:
            return np.frombuffer(self.payload, np.uint8, count, 12) != 0
        return np.frombuffer(self.payload, "<" + FORMATS[ValueType(kind)], count, 12)

    @classmethod
    def encode(cls, kind: ValueType, value: Any) -> Value:  # noqa: ANN401
        """The inverse of ``decode`` for scalars and strings."""
        return cls(kind, encode_string(value) if kind is ValueType.STRING else struct.pack("<" + FORMATS[kind], value))

    @classmethod
    def encode_array(cls, kind: ValueType, values: Sequence[Any]) -> Value:
        """The inverse of ``decode`` for arrays."""
        head = _ARRAY.pack(kind, len(values))
        if kind is ValueType.STRING:
            return cls(ValueType.ARRAY, head + b"".join(map(encode_string, values)))
        return cls(ValueType.ARRAY, head + struct.pack(f"<{len(values)}{FORMATS[kind]}", *values))


@dataclass(frozen=True, slots=True)
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


def encode_string(text: str) -> bytes:
    """u64 length | UTF-8."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _strings(data: Buffer, position: int, count: int) -> list[str]:
    """``count`` strings one after another, known to be there."""
    out, unpack = [], _U64.unpack_from
    for _ in range(count):
        start = position + 8
        position = start + unpack(data, position)[0]
        out.append(str(data[start:position], "utf-8"))
    return out


def _skip_strings(data: Buffer, position: int, count: int, end: int) -> int:
    """Where ``count`` strings one after another end; beyond ``end`` if they go beyond it."""
    unpack, last = _U64.unpack_from, end - 8
    for _ in range(count):
        if position > last:
            return end + 8
        position += 8 + unpack(data, position)[0]
    return int(position)


class Cursor:
    """Reads little-endian bytes forward and never past the end (or ``limit``), for which it raises ValueError."""

    def __init__(self, data: Buffer, position: int, limit: int | None = None) -> None:
        self.data, self.position = data, position
        self._end = len(data) if limit is None else min(len(data), limit)

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        start = self.position
        self._pass(size)
        return bytes(self.data[start : self.position])

    def number(self, code: str) -> int:
        """The next integer, of struct's ``code``."""
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0])

    def text(self, what: str) -> str:
        """The next string of GGUF. Raises ValueError that names ``what`` is not UTF-8."""
        data = self.take(self.number("Q"))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} {data[:64]!r} is not UTF-8") from error

    def check_count(self, count: int, least: int, what: str) -> None:
        """Raises ValueError if ``count`` entries of at least so many bytes cannot be in what is left."""
        if count > (self._end - self.position) // least:
            raise ValueError(f"truncated: {count} {what} are in it, it says, and {len(self.data)} bytes cannot hold them")
        if count > MAX_ENTRIES:
            raise ValueError(f"{count} {what}; at most {MAX_ENTRIES} are read")

    def value(self, key: str) -> Value:
        """The next metadata value with its type."""
        kind = _value_type(self.number("I"), key)
        start = self.position
        if kind is ValueType.STRING:
            self._pass(self.number("Q"))
        elif kind is not ValueType.ARRAY:
            self._pass(SIZES[kind])
        else:
            self._pass_array(key)
        return Value(kind, self.data[start : self.position])

    def _pass(self, size: int) -> None:
        self.position += size
        if self.position > len(self.data):
            raise ValueError(f"truncated: {self.position} bytes are needed, {len(self.data)} are there")
        if self.position > self._end:
            raise ValueError(f"more than {self._end} bytes of metadata, which no model has")

    def _pass_array(self, key: str) -> None:
        kind, count = _value_type(self.number("I"), key), self.number("Q")
        if kind is ValueType.ARRAY:
            raise ValueError(f"key {key} is an array of arrays")
        if kind is not ValueType.STRING:
            self._pass(count * SIZES[kind])
        elif count > (self._end - self.position) // 8:
            self._pass(8 * count)  # which raises
        else:
            self._pass(_skip_strings(self.data, self.position, count, self._end) - self.position)

    def tensor_info(self) -> TensorInfo:
        """The next tensor's name, shape, type and place."""
        length = self.number("Q")
        if not 1 <= length <= MAX_NAME:
            raise ValueError(f"a tensor's name is {length} bytes long; 1 to {MAX_NAME} are allowed")
        name = _tensor_name(self.take(length))
        dims = self.number("I")
        if not 1 <= dims <= MAX_DIMS:
            raise ValueError(f"{name} has {dims} dimensions")
        shape = struct.unpack(f"<{dims}q", self.take(8 * dims))[::-1]
        if min(shape) < 1:
            raise ValueError(f"{name} has shape {shape}")
        number, offset = self.number("I"), self.number("Q")
        kind = _TYPES.get(number)
        if kind is None:
            raise ValueError(f"{name} is of ggml type {number}, which is unknown here")
        if shape[-1] % GGML_QUANT_SIZES[kind][0]:
            raise ValueError(f"{name}: rows of {shape[-1]} are no multiple of {kind.name}'s block")
        return TensorInfo(name, kind, shape, offset)


_TYPES = {int(kind): kind for kind in GGML_QUANT_SIZES}


def _value_type(number: int, key: str) -> ValueType:
    if number > max(ValueType):
        raise ValueError(f"key {key} is of type {number}, which no GGUF has")
    return ValueType(number)


def _tensor_name(data: bytes) -> str:
    if b"\0" in data:
        raise ValueError(f"a tensor's name {data!r} holds a zero byte, where llama.cpp cuts it")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"a tensor's name {data!r} is not UTF-8") from error
