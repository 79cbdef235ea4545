"""Inputs of linears that an ONNX folder rounds by scales of its own: whether they are the store's, and what onnxruntime makes of
them, as it runs the file and node by node."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from quantize.activations import BLOCK, Activation
from quantize.store.tensors import QuantizedStore
from quantize.types import F32
from runtime_checks.checks.onnx_parts import OnnxParts
from runtime_checks.measure.results import Check, within
from runtime_checks.reference.onnx_qdq import QUANTIZE, OnnxInput
from runtime_checks.reference.onnx_tensor import OnnxTensor

EXACT = 0.0  # a scale is the store's or it is not, and what is rounded lies on the grid
# An integer product becomes a float32, and is multiplied by a product of two scales: three roundings of 2**-24, and some room. A
# product that saturates is off by whole integers.
INTEGER_TOLERANCE = 4 * 2.0**-24
# Node by node the same product is a float32 sum in whatever order: each of its terms rounds a sum that is no larger than all
# their sizes together.
FLOAT_TOLERANCE = 2.0**-24
ROWS = 8
BEYOND = 16  # codes past either end, which are clipped


def check_inputs(tensors: Mapping[str, OnnxTensor], parts: OnnxParts, store: QuantizedStore | None) -> list[Check]:
    """Every node that rounds is before a weight with codes; with ``store`` what rounds is what its record says."""
    found = {name: held for name, tensor in tensors.items() if (held := tensor.input()) is not None}
    nodes = parts.nodes_of(QUANTIZE)
    idle = nodes - {held.node for held in found.values()}
    checks = [within("inputs that no codes are behind", ", ".join(sorted(idle)[:3]) or "none", len(idle), EXACT)] if nodes else []
    for held in {held.node: held for held in found.values()}.values():
        checks.append(within("onnxruntime = reference, rounded", held.node, _rounding_error(held, parts), EXACT))
    for name, held in found.items():
        fused, single = _product_errors(tensors[name], held, parts)
        checks.append(within("onnxruntime = integers' product", name, fused, INTEGER_TOLERANCE))
        checks.append(within("node by node = simulation", name, single, FLOAT_TOLERANCE))
    for name, record in ({} if store is None else store.records).items():
        if name in tensors and (name in found or record.activation is not None):
            error = _difference(tensors[name], found.get(name), record.activation)
            checks.append(within("input = store's", name, error, EXACT))
    return checks


def _difference(tensor: OnnxTensor, held: OnnxInput | None, expected: Activation | None) -> float:
    """How many of scale and zero point are not those that are expected; infinity for what is rounded in another way."""
    if expected is None or expected.grid.static != (held is not None):
        return math.inf
    if held is None:
        return 0.0 if tensor.codes().group_size == BLOCK else math.inf
    return float(held.scale != np.float32(expected.scale)) + float(held.zero_point != expected.zero_point)


def _values(held: OnnxInput, channels: int) -> F32:
    """F32[ROWS, channels] over all codes and past both ends; the last row is the largest code everywhere."""
    codes = np.random.default_rng(channels).uniform(-BEYOND, 255 + BEYOND, (ROWS, channels))
    codes[-1] = 255
    return ((codes - held.zero_point) * held.scale).astype(np.float32)


def _rounding_error(held: OnnxInput, parts: OnnxParts) -> float:
    """How many values onnxruntime rounds otherwise."""
    first, stem = parts.node(held.node), held.node.rpartition("/")[0]
    x = _values(held, 1 << 12)
    out = parts.between(first, parts.node(f"{stem}/DequantizeLinear"), fused=False)(x)
    return float(np.count_nonzero(out != held.round(x))) if out.shape == x.shape else math.inf


def _product_errors(tensor: OnnxTensor, held: OnnxInput, parts: OnnxParts) -> tuple[float, float]:
    """How far what onnxruntime multiplies is from the integers' product, as a share of it; and node by node from the product of
    floats, as a share of its terms' sizes, for each of them."""
    first, last = parts.node(held.node), parts.node(f"{tensor.name.removesuffix('.weight')}/MatMul")
    codes, x = tensor.codes(), _values(held, tensor.shape[1])
    right = codes.codes.astype(np.float64) - codes.zero_point  # whole numbers, whose sums float64 holds exactly
    whole = (held.codes(x).astype(np.float64) - held.zero_point) @ right.T
    step = float(held.scale) * codes.scale[:, 0].astype(np.float64)
    fused = parts.between(first, last)(x)
    single, rounded, weight = parts.between(first, last, fused=False)(x), held.round(x).astype(np.float64), tensor.decode()
    if fused.shape != whole.shape or single.shape != whole.shape:
        return math.inf, math.inf
    simulated, terms = rounded @ weight.T.astype(np.float64), np.abs(rounded) @ np.abs(weight.T.astype(np.float64))
    least = np.abs(step)  # of one: 0 is met exactly
    shares = np.abs(fused - whole * step) / np.maximum(np.abs(whole * step), least)
    return float(shares.max()), float((np.abs(single - simulated) / np.maximum(terms, least)).max() / x.shape[1])
