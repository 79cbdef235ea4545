"""An ONNX folder's tensors: the reference, our grid, onnxruntime on the very nodes of the file, and the store."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from quantize.blocks import dequantize, spread
from quantize.grids.int_affine import IntAffine
from quantize.model_config import EMBEDDING, HEAD
from quantize.store import QuantizedStore
from quantize.types import F32, Array, Axis, PlainTensor, QuantizedTensor
from runtime_checks.decoded import open_onnx
from runtime_checks.onnx_parts import OnnxParts
from runtime_checks.reference_onnx import OnnxCodes, OnnxTensor
from runtime_checks.results import Check, within

# An identity matrix through MatMulNBits at level 0, GatherBlockQuantized or MatMulAdaDim gives (q - z) * s, rounded once, plus
# zeros: every weight to the bit.
EXACT = 0.0
# The split form adds s * (q - mid) and s * (mid - z), each rounded, and rounds the sum; the reference rounds once. Each of the
# four is off by at most 2**-24 of s * 2**bits: in steps of the grid, at 8 bits, that is this. A wrong code is a step of 1.
SPLIT_TOLERANCE = 4 * 2.0**-16
SPLIT = "split"
FLOAT = "float"


def check_onnx(folder: Path, store: QuantizedStore | None = None) -> list[Check]:
    """Every quantized tensor decoded by the reference, our grid and onnxruntime; with ``store``, its very numbers.

    Raises FileFormatError for a folder that is no ONNX model, or whose nodes onnxruntime refuses.
    """
    tensors, parts = open_onnx(folder), OnnxParts(folder)
    checks = []
    for tensor in tensors.values():
        if tensor.form != FLOAT:
            checks += _check_decoders(tensor, parts)
    head, embedding = HEAD.removesuffix(".weight"), tensors.get(EMBEDDING)
    if HEAD not in tensors and embedding is not None and embedding.form != FLOAT and head in parts.sites():
        checks.append(_check_runtime(HEAD, embedding.codes(), parts, SPLIT_TOLERANCE if embedding.form == SPLIT else EXACT))
    return checks if store is None else checks + _check_store(tensors, store)


def _check_decoders(tensor: OnnxTensor, parts: OnnxParts) -> list[Check]:
    held = tensor.codes()
    grid = IntAffine(8, held.group_size)  # decodes every width: codes of fewer bits lie below 256 too
    ours = QuantizedTensor(
        tensor.name,
        held.codes,
        Axis.PER_OC if held.per_oc else Axis.PER_IC,
        grid,
        {"scale": held.scale, "zero_point": held.zero_point},
    )
    return [
        within("reference = our grid", tensor.name, _differ(held.decode(), dequantize(ours)), EXACT),
        _check_runtime(tensor.name, held, parts, SPLIT_TOLERANCE if tensor.form == SPLIT else EXACT),
    ]


def _check_runtime(name: str, held: OnnxCodes, parts: OnnxParts, tolerance: float) -> Check:
    """The tensor through its own nodes in onnxruntime: values that differ, or for the split form the error in grid steps."""
    expected, site = held.decode(), name.removesuffix(".weight")
    error = 0.0
    if name == EMBEDDING:
        for start, rows in parts.embedding(site, expected.shape[0]):
            error += _differ_in_value(rows, expected[start : start + len(rows)])
        return within("onnxruntime = reference", name, error, tolerance)
    step = np.repeat(np.abs(held.scale), held.group_size, axis=1)[:, : held.codes.shape[1]]
    step = step if held.per_oc else step.T
    for start, rows in parts.linear(site, (expected.shape[0], expected.shape[1])):
        part = slice(start, start + len(rows))
        if tolerance == EXACT:
            error += _differ_in_value(rows.T, expected[:, part])
        else:
            error = max(error, float((np.abs(rows.T - expected[:, part]) / step[:, part]).max()))
    return within("onnxruntime = reference", name, error, tolerance)


def _check_store(tensors: dict[str, OnnxTensor], store: QuantizedStore) -> list[Check]:
    """Each tensor of the store once, none besides, and the numbers of each."""
    names = [*store.records, *(name for name in tensors if name not in store.records)]
    checks = [
        within("in the file and in the store, once", name, float((name in tensors) != (name in store.records)), EXACT)
        for name in names
    ]
    for name in store.records:
        if name in tensors:
            checks += _compare(tensors[name], store)
    return checks


def _compare(tensor: OnnxTensor, store: QuantizedStore) -> list[Check]:
    """Codes, scales and zero points of one tensor, or its floats, as counts of what differs; infinity for another kind."""
    record = store.records[tensor.name]
    if (tensor.form == FLOAT) != (record.grid is None):
        return [within("kind = store's", tensor.name, math.inf, EXACT)]
    held = tensor.values() if record.grid is None else tensor.codes()
    errors: dict[str, float] = {}
    start = 0
    for part in store.chunks(tensor.name):
        count = len(part.codes if isinstance(part, QuantizedTensor) else part.values)
        for what, error in _differences(tensor, held, slice(start, start + count), part).items():
            errors[what] = errors.get(what, 0.0) + error
        start += count
    if start != len(held.codes if isinstance(held, OnnxCodes) else held):
        errors["rows"] = math.inf
    return [within(f"{what} = store's", tensor.name, error, EXACT) for what, error in errors.items()]


def _differences(
    tensor: OnnxTensor, held: OnnxCodes | Array, rows: slice, part: QuantizedTensor | PlainTensor
) -> dict[str, float]:
    """How many numbers of the file's ``rows`` differ from the store's ``part``; scales are compared weight by weight.

    The file may cut a group into several blocks that repeat its scale.
    """
    if isinstance(part, PlainTensor):
        assert not isinstance(held, OnnxCodes)
        same_kind = tensor.dtype == part.dtype and held[rows].shape == part.values.shape
        return {"values": _differ(held[rows], part.values) if same_kind else math.inf}
    assert isinstance(held, OnnxCodes)
    cols = part.codes.shape[1]
    if held.per_oc != (part.axis is Axis.PER_OC) or held.codes[rows].shape != part.codes.shape:
        return {"codes": math.inf}
    scale, zero = (spread(value, part.grid.group_size, cols) for value in part.grid.scale_zero(part.params))
    file_scale, file_zero = (np.repeat(value[rows], held.group_size, axis=1)[:, :cols] for value in (held.scale, held.zero_point))
    return {
        "codes": _differ(held.codes[rows], part.codes),
        "scales": _differ(file_scale, scale),
        "zero points": float(np.count_nonzero(file_zero != zero)),
    }


def _differ(left: Array, right: Array) -> float:
    """How many values differ in any bit."""
    bits = f"u{left.itemsize}"
    return float(np.count_nonzero(np.ascontiguousarray(left).view(bits) != np.ascontiguousarray(right).view(bits)))


def _differ_in_value(left: F32, right: F32) -> float:
    """How many values differ; a sum gives 0 where a product gave -0."""
    return float(np.count_nonzero(left != right)) if left.shape == right.shape else math.inf
