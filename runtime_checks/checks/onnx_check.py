"""An ONNX folder's tensors: the reference, our grid, onnxruntime on the very nodes of the file, and the store."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from quantize.blocks import from_rows, spread
from quantize.grids.int_affine import IntAffine
from quantize.grids.levels import Levels
from quantize.model_config import EMBEDDING, HEAD
from quantize.store.tensors import QuantizedStore
from quantize.types import F32, Array, Axis, PlainTensor, QuantizedTensor
from runtime_checks.checks.input_check import check_inputs
from runtime_checks.checks.onnx_parts import OnnxParts
from runtime_checks.checks.onnx_stacks import experts
from runtime_checks.checks.turn_check import check_turns
from runtime_checks.measure.results import Check, within
from runtime_checks.reference.onnx_sum import OnnxWeight, whole_weights
from runtime_checks.reference.onnx_tensor import OnnxCodes, OnnxTensor
from runtime_checks.runtimes.weights import open_onnx, row_chunks

# An identity matrix through MatMulNBits at level 0, GatherBlockQuantized, MatMulAdaDim or MatMulLevels gives (q - z) * s, rounded
# once, plus zeros: every weight to the bit.
EXACT = 0.0
# The split form adds s * (q - mid) and s * (mid - z), each rounded, and rounds the sum; the reference rounds once. Each of the
# four is off by at most 2**-24 of s * 2**bits: in steps of the grid, at 8 bits, that is this. A wrong code is a step of 1.
SPLIT_TOLERANCE = 4 * 2.0**-16
# A graph of float16 rounds what it makes once more, by this share at most; a sum of parts each of them, and itself.
HALF = 2.0**-11
LEAST_HALF = 2.0**-25
SPLIT, STACK = "split", "qmoe"
FLOAT = "float"


@np.errstate(over="ignore", invalid="ignore")  # damaged scales give infinities, which the comparisons see
def check_onnx(folder: Path, store: QuantizedStore | None = None) -> list[Check]:
    """Every quantized tensor decoded by the reference, our grid and onnxruntime; with ``store``, its very numbers.

    Nothing may be in the folder's model that no output needs. Raises FileFormatError for a folder that is no ONNX model, or
    whose nodes onnxruntime refuses.
    """
    tensors, parts = open_onnx(folder), OnnxParts(folder)
    checks = [] if store is None else _check_presence(set(tensors), set(store.records))
    for name, tensor in tensors.items():
        held = tensor.values() if tensor.form == FLOAT else tensor.codes()
        if isinstance(held, OnnxCodes):
            sites = [name, HEAD] if name == EMBEDDING and HEAD not in tensors and parts.has(HEAD) else [name]
            checks += _check_decoders(tensor, held, parts, sites)
        if store is not None and name in store.records:
            checks += _compare(tensor, held, store, parts.halved)
    for name, weight in whole_weights(tensors).items():
        if weight.beside:
            checks += _check_sum(name, weight, parts, store)
    checks += check_turns(tensors, parts, store)
    checks += check_inputs(tensors, parts, store)
    unused = parts.unused()
    checks.append(within("initializers that no output needs", ", ".join(unused[:3]) or "all", len(unused), EXACT))
    return checks + [within("bytes after the last tensor", name, count, EXACT) for name, count in parts.trailing_bytes().items()]


def _check_presence(in_file: set[str], in_store: set[str]) -> list[Check]:
    """Each tensor of the store once, and none besides (that a name is there twice, the reference refuses)."""
    names = sorted(in_file | in_store)
    return [
        within("in the file and in the store, once", name, float((name in in_file) != (name in in_store)), EXACT)
        for name in names
    ]


def _check_decoders(tensor: OnnxTensor, held: OnnxCodes, parts: OnnxParts, sites: list[str]) -> list[Check]:
    """The reference against our grid and against onnxruntime, at each of the ``sites`` whose nodes read these codes."""
    checks = [within("reference = our grid", tensor.name, _grid_error(held), EXACT)]
    for name in sites:
        if name == EMBEDDING:
            error, tolerance = _embedding_error(held, parts), EXACT
        elif tensor.form == STACK:
            error, tolerance = _stack_error(name, tensor, held, parts), EXACT
        elif tensor.form == SPLIT:
            error, tolerance = _split_error(name, tensor, held, parts), SPLIT_TOLERANCE
        else:
            error, tolerance = _linear_error(name, tensor, held, parts), EXACT
        checks.append(within("onnxruntime = reference", name, error, tolerance))
    return checks


def _check_sum(name: str, weight: OnnxWeight, parts: OnnxParts, store: QuantizedStore | None) -> list[Check]:
    """A weight of several parts: what onnxruntime makes of all of them, and which input channels each reads."""
    expected, step = weight.whole(weight.first.decode()), _step(weight)
    shape, sites = weight.shape, [name, *(part.name for part in weight.beside), f"{name.removesuffix('.weight')}.sum"]
    error = 0.0
    for start, rows in parts.linear(name, shape, sites):
        wanted = expected[:, start : start + len(rows)].T
        off = np.abs(rows - wanted).max() if rows.shape == wanted.shape else math.inf
        error = np.maximum(error, off / step)  # unlike max(), this keeps a nan
    tolerance = SPLIT_TOLERANCE if any(part.form == SPLIT for part in weight.parts) else EXACT
    if parts.halved:
        tolerance += float((len(sites) - 1) * HALF * np.abs(expected).max() / step)
    checks = [within("onnxruntime = reference, all parts", name, float(error), tolerance)]
    reading = [part for part in weight.parts if part.read_channels is not None]
    return checks if store is None else [*checks, *(_check_reads(part, shape[1], store) for part in reading)]


def _step(weight: OnnxWeight) -> np.float32:
    """The largest of its parts' scales; 1 of a weight of floats."""
    scales = [np.abs(part.codes().scale).max() for part in weight.parts if part.read_floats is None]
    return np.float32(np.max(scales)) if scales else np.float32(1)


def _check_reads(part: OnnxTensor, inputs: int, store: QuantizedStore) -> Check:
    reads = store.reads(part.name) if part.name in store.records else None
    same = reads is not None and np.array_equal(reads, part.channels(inputs))
    return within("input channels = store's", part.name, float(not same), EXACT)


def _grid_error(held: OnnxCodes) -> float:
    """How many weights differ between the reference and the int grid, whose formula asks for neither width nor group size. Levels
    are codes around 0."""
    grid, cols = IntAffine(), held.codes.shape[1]
    error = 0.0
    for rows in row_chunks(*held.codes.shape):
        params: dict[str, Array] = {"scale": held.scale[rows], "zero_point": held.zero_point[rows]}
        scale, zero = (spread(value, held.group_size, cols) for value in grid.scale_zero(params))
        ours = from_rows(grid.decode(held.codes[rows], scale, zero), Axis.PER_OC if held.per_oc else Axis.PER_IC)
        error += _differ(held.decode(oc=rows) if held.per_oc else held.decode(ic=rows), ours)
    return error


def _embedding_error(held: OnnxCodes, parts: OnnxParts) -> float:
    """How many values of the rows that onnxruntime looks up differ."""
    rows = parts.embedding(EMBEDDING, len(held.codes))
    return sum(_differ_in_value(part, held.decode(oc=slice(start, start + len(part)))) for start, part in rows)


def _linear_error(name: str, tensor: OnnxTensor, held: OnnxCodes, parts: OnnxParts) -> float:
    """How many values differ of the weight that onnxruntime multiplies by."""
    columns = parts.linear(name, tensor.shape)
    return sum(_differ_in_value(part.T, held.decode(ic=slice(start, start + len(part)))) for start, part in columns)


def _stack_error(name: str, tensor: OnnxTensor, held: OnnxCodes, parts: OnnxParts) -> float:
    """How many values differ of the experts that onnxruntime multiplies by."""
    error = 0.0
    for expert, rows, columns, part in experts(parts, name, tensor.shape):
        first = expert * tensor.shape[1]
        error += _differ_in_value(part, held.decode(slice(first + rows.start, first + rows.stop), columns))
    return error


def _split_error(name: str, tensor: OnnxTensor, held: OnnxCodes, parts: OnnxParts) -> float:
    """The largest difference of a weight, in steps of its group; input channels are the stored rows."""
    error = 0.0
    for start, part in parts.linear(name, tensor.shape):
        rows = slice(start, start + len(part))
        expected = held.decode(ic=rows).T
        if part.shape != expected.shape:
            return math.inf
        starts = np.arange(0, expected.shape[1], held.group_size)
        off = np.abs(part - expected)
        if part.dtype == np.float16:
            off = np.maximum(off - HALF * np.abs(expected) - LEAST_HALF, 0)
        per_group = np.maximum.reduceat(off, starts, axis=1)
        error = np.maximum(error, (per_group / np.abs(held.scale[rows])).max())  # unlike max(), this keeps a nan
    return float(error)


def _compare(tensor: OnnxTensor, held: OnnxCodes | Array, store: QuantizedStore, halved: bool) -> list[Check]:
    """Codes, scales and zero points of one tensor, or its floats, as counts of what differs; infinity for another kind."""
    if isinstance(held, OnnxCodes) != (store.records[tensor.name].grid is not None):
        return [within("kind = store's", tensor.name, math.inf, EXACT)]
    errors: dict[str, float] = {}
    start = 0
    for part in store.chunks(tensor.name):
        count = len(part.codes if isinstance(part, QuantizedTensor) else part.values)
        for what, error in _differences(tensor, held, slice(start, start + count), part, halved).items():
            errors[what] = errors.get(what, 0.0) + error
        start += count
    if start != len(held.codes if isinstance(held, OnnxCodes) else held):
        errors["rows"] = math.inf
    return [within(f"{what} = store's", tensor.name, error, EXACT) for what, error in errors.items()]


def _differences(
    tensor: OnnxTensor, held: OnnxCodes | Array, rows: slice, part: QuantizedTensor | PlainTensor, halved: bool
) -> dict[str, float]:
    """How many numbers of the file's ``rows`` differ from the store's ``part``; scales are compared weight by weight.

    The file may cut a group into several blocks that repeat its scale.
    """
    if isinstance(part, PlainTensor):
        assert not isinstance(held, OnnxCodes)
        narrowed = halved and (tensor.dtype, part.dtype) == ("F16", "F32")  # a norm or a bias
        values = part.values.astype(np.float16) if narrowed else part.values
        same_kind = (narrowed or tensor.dtype == part.dtype) and held[rows].shape == values.shape
        return {"values": _differ(held[rows], values) if same_kind else math.inf}
    assert isinstance(held, OnnxCodes)
    cols = part.codes.shape[1]
    if held.per_oc != (part.axis is Axis.PER_OC) or held.codes[rows].shape != part.codes.shape:
        return {"codes": math.inf}
    scale, zero = (spread(value, part.grid.group_size, cols) for value in part.grid.scale_zero(part.params))
    if halved and tensor.form != SPLIT:  # whose nodes are of float32
        scale = scale.astype(np.float16).astype(np.float32)
    file_scale, file_zero = (np.repeat(value[rows], held.group_size, axis=1)[:, :cols] for value in (held.scale, held.zero_point))
    return {
        "codes": _codes_off(held, rows, part),
        "scales": _differ(file_scale, scale),
        "zero points": float(np.count_nonzero(file_zero != zero)),
    }


def _codes_off(held: OnnxCodes, rows: slice, part: QuantizedTensor) -> float:
    """How many codes differ, or the levels that they stand for; infinity if these are of another table."""
    if not isinstance(part.grid, Levels):
        return math.inf if held.levels is not None else _differ(held.codes[rows], part.codes)
    if held.levels is None or not np.array_equal(held.levels, np.array(part.grid.levels)):
        return math.inf
    return _differ(held.codes[rows], part.grid.values[part.codes].astype(np.int8))


def _differ(left: Array, right: Array) -> float:
    """How many values differ in any bit."""
    bits = f"u{left.itemsize}"
    return float(np.count_nonzero(np.ascontiguousarray(left).view(bits) != np.ascontiguousarray(right).view(bits)))


def _differ_in_value(left: Array, right: F32) -> float:
    """How many values differ, of F16 from the nearest half; a sum gives 0 where a product gave -0."""
    right = right.astype(left.dtype)
    return float(np.count_nonzero(left != right)) if left.shape == right.shape else math.inf
