"""A decoder's graph in float16, for processors that compute in it: activations, caches and logits; weights keep what they are.

Every float of the graph becomes a half one, so no value meets one of another type. Norms add in float32 by themselves; what else
would lose too much is refused by name. Scales, norms and biases are looked at before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, defs, helper, numpy_helper

from exporter.onnx.graph import Decoder
from quantize.blocks import per_code
from quantize.checkpoint.floats import to_f32
from quantize.errors import ExportError, asked
from quantize.grids.int_affine import IntAffine
from quantize.store.record import TensorRecord
from quantize.store.tensors import QuantizedStore
from quantize.types import F32, Array, PlainTensor, QuantizedTensor

LIMIT = float(np.finfo(np.float16).max)
# Of floats: positions from 2,048 on are lost, or squares and powers overflow. What overflows on outliers alone, verify measures.
COARSE = ("Cos", "CumSum", "Exp", "Log", "Pow", "Range", "ReduceL2", "ReduceSumSquare", "Sin")


def in_float16(decoder: Decoder, where: str) -> Decoder:
    """The graph of float32 values with all of them halves. Raises ExportError for an operator that float16 is too coarse for."""
    coarse = next(_coarse(decoder.model, [name for name, value in decoder.constants.items() if value.dtype != np.float32]), None)
    if coarse is not None:
        told = f"its graph computes {coarse.op_type} of floats ({coarse.name}), for which float16 is too coarse"
        raise ExportError(f"{where}: {told}; leave {asked('onnx_dtype')} out")
    return replace(
        decoder, model=retyped(decoder.model), constants={name: narrowed(value) for name, value in decoder.constants.items()}
    )


def retyped(model: ModelProto) -> ModelProto:
    """A copy whose inputs, outputs, casts and constants of float32 are of float16."""
    out = ModelProto()
    out.CopyFrom(model)
    for value in (*out.graph.input, *out.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in out.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(narrowed(numpy_helper.to_array(tensor)), tensor.name))
    for node in out.graph.node:
        for item in node.attribute:
            _retype(node, item)
    return out


def _retype(node: NodeProto, item: AttributeProto) -> None:
    if node.op_type == "Cast" and item.name == "to" and item.i == TensorProto.FLOAT:
        item.i = TensorProto.FLOAT16
    elif item.type == AttributeProto.TENSOR:
        item.t.CopyFrom(numpy_helper.from_array(narrowed(numpy_helper.to_array(item.t)), item.t.name))
    elif node.op_type == "Constant" and item.type in (AttributeProto.FLOAT, AttributeProto.FLOATS):
        value = np.array(item.f if item.type == AttributeProto.FLOAT else list(item.floats), np.float32)
        item.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(narrowed(value))))


def narrowed(values: Array) -> Array:
    """F32 as F16, what stands for minus infinity as the lowest number; others as they are."""
    return np.clip(values, -LIMIT, LIMIT).astype(np.float16) if values.dtype == np.float32 else values


def _coarse(model: ModelProto, whole: Iterable[str]) -> Iterator[NodeProto]:
    """Nodes of COARSE that read floats. ``whole``: names of constants that are none."""
    domains = {entry.domain: entry.version for entry in model.opset_import}
    others = {value.name for value in model.graph.input if value.type.tensor_type.elem_type != TensorProto.FLOAT} | {*whole}
    for node in model.graph.node:
        if node.op_type in COARSE and node.input[0] not in others:
            yield node
        others |= _made_of_others(node, others, domains.get(node.domain, 1))


def _made_of_others(node: NodeProto, others: set[str], opset: int) -> set[str]:
    """Of a node's outputs those that are no floats."""
    held = {item.name: item for item in node.attribute}
    if node.op_type == "Cast":
        return set(node.output) if held["to"].i != TensorProto.FLOAT else set()
    if node.op_type == "Constant":
        floats = "value_float" in held or "value_floats" in held or ("value" in held and held["value"].t.data_type == 1)
        return set() if floats else set(node.output)
    if node.domain or not defs.has(node.op_type, opset):
        return set()
    schema = defs.get_schema(node.op_type, opset)
    kinds = {schema.inputs[min(index, len(schema.inputs) - 1)].type_str: name for index, name in enumerate(node.input) if name}
    out = set[str]()
    for index, name in enumerate(node.output):
        kind = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
        if kinds.get(kind) in others or (kind.startswith("tensor(") and kind != "tensor(float)"):
            out.add(name)
    return out


def check_float16(store: QuantizedStore) -> None:
    """Raises ExportError for the first number of a tensor that float16 does not hold: one beyond its limits, and a scale of a
    group with weights that it makes 0."""
    for name, record in store.records.items():
        if _may_not_fit(record):
            for chunk in store.chunks(name):
                problem = _scales_problem(chunk) if isinstance(chunk, QuantizedTensor) else _floats_problem(chunk)
                if problem is not None:
                    raise ExportError(f"{store.path}: {name} has {problem}; leave {asked('onnx_dtype')} out")


def _may_not_fit(record: TensorRecord) -> bool:
    return record.dtype != "F16" if record.grid is None else isinstance(record.grid, IntAffine) and record.grid.scale_bytes > 2


def _floats_problem(chunk: PlainTensor) -> str | None:
    values: F32 = np.abs(to_f32(chunk.values, chunk.dtype))
    return None if values.max() <= LIMIT else f"the value {values.max():.6g}, and float16 ends at {LIMIT:.0f}"


def _scales_problem(chunk: QuantizedTensor) -> str | None:
    scale, zero = per_code(chunk)
    size = np.abs(scale)
    if not size.max() <= LIMIT:
        return f"the scale {size.max():.6g}, and float16 ends at {LIMIT:.0f}"
    lost = size[(chunk.codes != zero) & (size.astype(np.float16) == 0)]
    return f"the scale {lost.min():.6g}, which float16 takes for 0" if lost.size else None
