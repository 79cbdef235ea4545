"""The GGUF container, version 3: a bounded parser and the matching encoder. Values stay raw bytes, so they copy verbatim.

::

    "GGUF" | u32 version | u64 tensors | u64 key-values
    key-value: string key | u32 type | payload          string: u64 length | UTF-8 bytes
    array payload: u32 element type | u64 count | elements
    tensor: string name | u32 dims | i64 ne[dims], innermost first | u32 ggml type | u64 offset into the data
    padding to the alignment | data, every tensor padded to the alignment

What the parser takes is what llama.cpp takes (``gguf_init_from_reader`` and ``llama_model_loader``). Beyond that it refuses
shapes with a 0 and without dimensions, which no model has, more tensors, keys and metadata than any model has, and bytes
after the last tensor that are no padding.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantize.gguf.parts import Buffer, Cursor, TensorInfo, Value, ValueType, encode_string
from quantize.outside import open_regular

__all__ = [
    "Cursor",
    "GgufHeader",
    "TensorInfo",
    "Value",
    "ValueType",
    "encode_header",
    "encode_info",
    "encode_values",
    "map_file",
    "padded",
    "parse_header",
]

MAGIC, VERSION = b"GGUF", 3
ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAX_ALIGNMENT = "general.alignment", 32, 1 << 20
MAX_METADATA = 1 << 27  # bytes before the data
MAX_PADDING = 1 << 16  # bytes of 0 after the last tensor: some tools fill up to a page
LEAST_VALUE, LEAST_TENSOR = 8 + 1 + 4 + 1, 8 + 4 + 8 + 4 + 8  # bytes of a key-value and of a tensor's entry


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the data; ``data_start`` is the byte at which the data section begins."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    data_start: int


def map_file(path: Path) -> memoryview:
    """The bytes of a regular file, mapped read-only: nothing is read yet.

    Raises OSError, also for what is no regular file, and ValueError for one that is empty.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ValueError("truncated: the file is empty")
        return np.memmap(file, np.uint8, "r").data


def padded(size: int, alignment: int) -> int:
    """The next multiple of ``alignment``."""
    return -(-size // alignment) * alignment


def alignment_of(metadata: Mapping[str, Value]) -> int:
    """``general.alignment`` or its default. Raises ValueError if it is no power of two."""
    value = metadata.get(ALIGNMENT_KEY)
    if value is None:
        return DEFAULT_ALIGNMENT
    if value.type is not ValueType.U32:
        raise ValueError(f"{ALIGNMENT_KEY} is of type {value.described}, not u32")
    alignment = int(value.decode())
    if alignment < 1 or alignment & (alignment - 1) or alignment > MAX_ALIGNMENT:
        raise ValueError(f"{ALIGNMENT_KEY} {alignment} is no power of two up to {MAX_ALIGNMENT}")
    return alignment


def parse_header(data: Buffer) -> GgufHeader:
    """Parse a whole file's bytes (a map will do; the data is not touched). Raises ValueError that says what is wrong."""
    cursor = Cursor(data, 0, MAX_METADATA)
    if cursor.take(4) != MAGIC:
        raise ValueError("no GGUF file")
    _check_version(cursor.number("I"))
    n_tensors, n_values = cursor.number("Q"), cursor.number("Q")
    cursor.check_count(n_values, LEAST_VALUE, "keys")
    cursor.check_count(n_tensors, LEAST_TENSOR, "tensors")
    metadata: dict[str, Value] = {}
    for _ in range(n_values):
        key = cursor.text("a key")
        if key in metadata or not key:
            raise ValueError(f"key {key!r} is empty or twice in it")
        metadata[key] = cursor.value(key)
    alignment = alignment_of(metadata)
    tensors: dict[str, TensorInfo] = {}
    for _ in range(n_tensors):
        info = cursor.tensor_info()
        if info.name in tensors:
            raise ValueError(f"tensor {info.name} is twice in it")
        tensors[info.name] = info
    header = GgufHeader(metadata, tensors, padded(cursor.position, alignment))
    _check_layout(header, data, alignment)
    return header


def _check_version(version: int) -> None:
    if version in (2, VERSION):
        return
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if 1 <= swapped <= VERSION:
        raise ValueError(f"a big-endian GGUF (version {swapped}), which this machine cannot run; get the little-endian one")
    raise ValueError(f"GGUF version {version} is not supported; supported: 2 and {VERSION}, little-endian")


def _check_layout(header: GgufHeader, data: Buffer, alignment: int) -> None:
    """Tensors follow one another, each padded, up to the file's end: neither overlap nor hidden bytes nor truncation."""
    expected = 0
    for info in header.tensors.values():
        if info.offset != expected:
            raise ValueError(f"tensor {info.name} is at byte {info.offset} of the data, not at {expected} where it should be")
        end = header.data_start + expected + info.nbytes
        if end > len(data):
            raise ValueError(f"truncated: {info.name} ends at byte {end} of {len(data)}")
        expected = padded(expected + info.nbytes, alignment)
    end = header.data_start + expected
    rest = max(0, len(data) - end)
    if rest > MAX_PADDING or bytes(data[end:]).strip(b"\0"):
        raise ValueError(f"{rest} bytes follow the last tensor")


def encode_header(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> bytes:
    """Everything before the data section, padding included."""
    out = encode_values(metadata, len(tensors)) + b"".join(map(encode_info, tensors))
    return out + bytes(-len(out) % alignment_of(metadata))


def encode_values(metadata: Mapping[str, Value], tensors: int) -> bytes:
    """A header's first part: how much there is of what, and the metadata."""
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSION, tensors, len(metadata)))
    for key, value in metadata.items():
        out += encode_string(key) + struct.pack("<I", value.type)
        out += value.payload
    return bytes(out)


def encode_info(info: TensorInfo) -> bytes:
    """A tensor's entry in the header."""
    shape = struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *reversed(info.shape))
    return encode_string(info.name) + shape + struct.pack("<IQ", info.type, info.offset)
