"""QuantizedTensor -> the bytes of ONNX initializers, and what the graph has to know of them before any byte is read.

A linear is first a ``Form``: nodes, and initializers of which only name, type and shape are known (``Planned``). When the
whole file is planned, each form pours the store's chunks into its initializers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from quantize.grids.int_affine import IntAffine
from quantize.grids.levels import Levels
from quantize.store.record import TensorRecord
from quantize.types import U8, Array

ITEM_BITS: dict[int, int] = {
    TensorProto.INT64: 64,
    TensorProto.INT32: 32,
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT4: 4,
}


FLOAT_TYPES = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}


@dataclass(frozen=True)
class Planned:
    """An initializer whose bytes come later; ``data_type`` is a TensorProto.DataType."""

    name: str
    data_type: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the data file."""
        return -(-int(np.prod(self.shape, dtype=np.int64)) * ITEM_BITS[self.data_type] // 8)


# Where bytes go: (initializer, offset in it, bytes).
Span = tuple[str, int, bytes]


@dataclass(frozen=True)
class Wire:
    """The value that a linear reads and the one that it makes, and the type of both."""

    x: str
    y: str
    kind: int = TensorProto.FLOAT


@dataclass(frozen=True)
class Form:
    """One tensor of the store as a part of the graph.

    ``constants`` are small and shared: linears of the same shape name the same ones. ``pour(first_row, chunk)`` turns
    a chunk of stored rows into pieces.
    """

    form: str
    nodes: list[NodeProto]
    planned: tuple[Planned, ...]
    pour: Callable[[int, Any], Iterator[Span]]  # a chunk is a QuantizedTensor where the record has a grid, else a PlainTensor
    constants: Mapping[str, Array] = field(default_factory=dict)


def node(op: str, inputs: list[str], outputs: list[str], name: str, domain: str = "", **attributes: int | list[int]) -> NodeProto:
    """``onnx.helper.make_node`` for integer attributes, typed."""
    proto = helper.make_node(op, inputs, outputs, name=name, domain=domain)
    proto.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
    return proto


def site(name: str) -> str:
    """Prefix of the names of a tensor's nodes: the tensor's name without ``.weight``."""
    return name.removesuffix(".weight")


def pack_bits(values: U8, bits: int) -> U8:
    """U8[..., count] below 2**bits -> U8[..., ceil(count * bits / 8)]: each row one little-endian bit stream.

    ::

        bits = 4, a b c    byte 0: bbbb aaaa   byte 1: 0000 cccc      (MatMulNBits: the low bits first)
        bits = 3, a b c    byte 0: cc bbb aaa  byte 1: ....... c      (MatMulAdaDim: a code may straddle two bytes)
    """
    if bits == 8:
        return values
    if 8 % bits:
        stream = (values[..., None] >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)
        return np.packbits(stream.reshape(*values.shape[:-1], -1), axis=-1, bitorder="little")
    per_byte = 8 // bits
    packed = pad_last(values, per_byte)[..., ::per_byte].copy()
    for index in range(1, per_byte):
        packed[..., : -(-(values.shape[-1] - index) // per_byte)] |= values[..., index::per_byte] << np.uint8(bits * index)
    return packed


def pad_last(values: U8, multiple: int) -> U8:
    """Zeros appended to the last axis up to a multiple."""
    padding = -values.shape[-1] % multiple
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, padding)]) if padding else values


def planned_scale(record: TensorRecord, shape: tuple[int, ...], kind: int = TensorProto.FLOAT) -> Planned:
    """A tensor's scales in the type that its grid stores, or in float16 for an operator that takes no other."""
    assert isinstance(record.grid, IntAffine | Levels), record
    stored = FLOAT_TYPES["float16" if isinstance(record.grid, Levels) else record.grid.scale_dtype]
    return Planned(f"{record.name}.scale", stored if kind == TensorProto.FLOAT else kind, shape)


def wide_scale(scale: Planned, kind: int = TensorProto.FLOAT) -> tuple[str, list[NodeProto]]:
    """Scales as the type that operators want: the value, and the Cast that makes it, which onnxruntime folds at load."""
    if scale.data_type == kind:
        return scale.name, []
    wide, owner = f"{scale.name}.wide", site(scale.name.removesuffix(".scale"))
    return wide, [node("Cast", [scale.name], [wide], f"{owner}/Cast scale", to=kind)]


def as_type(values: Array, kind: int) -> Array:
    """Floats as the file stores them, F16 for F32; others as they are."""
    return values.astype(np.float16) if kind == TensorProto.FLOAT16 else values


def repeat_groups(values: Array, record: TensorRecord, size: int, blocks: int) -> Array:
    """[rows, groups] -> [rows, blocks]: each group's value for every block that it is cut into."""
    assert record.grid is not None
    return np.repeat(values, record.grid.group_size // size, axis=1)[:, :blocks]
