"""Tensors that stay floats: norms and biases, and weights kept in the source's dtype."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from onnx import NodeProto, TensorProto

from exporter.onnx.tensors import Form, Planned, Span, Wire, as_type, node, site
from quantize.store.record import TensorRecord
from quantize.types import PlainTensor, QuantizedTensor

DATA_TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}


def vector(record: TensorRecord, kind: int) -> Form:
    """An initializer that the graph reads as it is, of the type of its values: norms and biases, F32 in the store."""
    assert record.dtype == "F32", (record.name, record.dtype)
    return Form("float", [], (Planned(record.name, kind, tuple(record.shape)),), partial(_pour, kind=kind))


def kept(record: TensorRecord) -> Form:
    """An initializer in the source's dtype, and no node."""
    return Form("float", [], (_planned(record),), _pour)


def float_embedding(record: TensorRecord, wire: Wire) -> Form:
    """Rows of the table, made the type of the graph's values after they are gathered."""
    rows = wire.y if DATA_TYPES[record.dtype] == wire.kind else f"{site(record.name)}.narrow"
    nodes = [node("Gather", [record.name, wire.x], [rows], f"{site(record.name)}/Gather", axis=0)]
    if rows != wire.y:
        nodes.append(cast(rows, wire.y, site(record.name), wire.kind))
    return Form("float", nodes, (_planned(record),), _pour)


def float_linear(record: TensorRecord, wire: Wire) -> Form:
    """A linear over float weights."""
    return Form("float", _linear_nodes(record, wire, site(record.name)), (_planned(record),), _pour)


def float_tied_head(record: TensorRecord, wire: Wire) -> Form:
    """The head over the embedding's own initializer."""
    return Form("float", _linear_nodes(record, wire, "lm_head"), (), lambda first, chunk: iter(()))


def _linear_nodes(record: TensorRecord, wire: Wire, prefix: str) -> list[NodeProto]:
    weight, nodes = record.name, []
    if DATA_TYPES[record.dtype] != wire.kind:
        weight = f"{prefix}.wide"
        nodes.append(cast(record.name, weight, prefix, wire.kind))
    transposed = f"{prefix}.transposed"
    return [
        *nodes,
        node("Transpose", [weight], [transposed], f"{prefix}/Transpose", perm=[1, 0]),
        node("MatMul", [wire.x, transposed], [wire.y], f"{prefix}/MatMul"),
    ]


def cast(value: str, made: str, prefix: str, kind: int) -> NodeProto:
    """Floats as floats of another type."""
    return node("Cast", [value], [made], f"{prefix}/Cast", to=kind)


def _planned(record: TensorRecord) -> Planned:
    return Planned(record.name, DATA_TYPES[record.dtype], tuple(record.shape))


def _pour(first: int, chunk: QuantizedTensor | PlainTensor, kind: int = TensorProto.UNDEFINED) -> Iterator[Span]:
    assert isinstance(chunk, PlainTensor)
    values = as_type(chunk.values, kind)
    row_bytes = values.nbytes // len(values)
    yield chunk.name, first * row_bytes, values.tobytes()
