"""Tensors that stay floats: norms and biases, and weights kept in the source's dtype."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto, TensorProto

from exporter.onnx.tensors import Form, Planned, Span, Wire, node, site
from quantize.store.tensors import TensorRecord
from quantize.types import PlainTensor, QuantizedTensor

DATA_TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}


def vector(record: TensorRecord) -> Form:
    """An initializer that the graph reads as it is: norms and biases, F32."""
    assert record.dtype == "F32", (record.name, record.dtype)
    return kept(record)


def kept(record: TensorRecord) -> Form:
    """An initializer in the source's dtype, and no node."""
    return Form("float", [], (_planned(record),), _pour)


def float_embedding(record: TensorRecord, wire: Wire) -> Form:
    """Rows of the table, widened to float32 after they are gathered."""
    rows = wire.y if record.dtype == "F32" else f"{site(record.name)}.narrow"
    nodes = [node("Gather", [record.name, wire.x], [rows], f"{site(record.name)}/Gather", axis=0)]
    if rows != wire.y:
        nodes.append(widen(rows, wire.y, site(record.name)))
    return Form("float", nodes, (_planned(record),), _pour)


def float_linear(record: TensorRecord, wire: Wire) -> Form:
    """A linear over float weights."""
    return Form("float", _linear_nodes(record, wire, site(record.name)), (_planned(record),), _pour)


def float_tied_head(record: TensorRecord, wire: Wire) -> Form:
    """The head over the embedding's own initializer."""
    return Form("float", _linear_nodes(record, wire, "lm_head"), (), lambda first, chunk: iter(()))


def _linear_nodes(record: TensorRecord, wire: Wire, prefix: str) -> list[NodeProto]:
    weight, nodes = record.name, []
    if record.dtype != "F32":
        weight = f"{prefix}.wide"
        nodes.append(widen(record.name, weight, prefix))
    transposed = f"{prefix}.transposed"
    return [
        *nodes,
        node("Transpose", [weight], [transposed], f"{prefix}/Transpose", perm=[1, 0]),
        node("MatMul", [wire.x, transposed], [wire.y], f"{prefix}/MatMul"),
    ]


def widen(narrow: str, wide: str, prefix: str) -> NodeProto:
    """Floats of 16 bits as float32."""
    return node("Cast", [narrow], [wide], f"{prefix}/Cast", to=TensorProto.FLOAT)


def _planned(record: TensorRecord) -> Planned:
    return Planned(record.name, DATA_TYPES[record.dtype], tuple(record.shape))


def _pour(first: int, chunk: QuantizedTensor | PlainTensor) -> Iterator[Span]:
    assert isinstance(chunk, PlainTensor)
    row_bytes = chunk.values.nbytes // len(chunk.values)
    yield chunk.name, first * row_bytes, chunk.values.tobytes()
