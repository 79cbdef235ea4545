"""Linears of QuantizeLinear and DequantizeLinear: what their codes and scales are, and how their inputs are rounded.

::

    codes     U8[IC, OC], scale F32[OC], zero point U8[OC], behind NAME/DequantizeLinear, which NAME/MatMul multiplies by
    input     q = clip(round(x / s) + z, 0, 255), (q - z) s: s F32[], z U8[], of OTHER.rounded/QuantizeLinear and DequantizeLinear

What lies between two codes goes to the even one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from runtime_checks.reference.decode import F32, U8
from runtime_checks.reference.graph import Graph

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
ROUNDED = ".rounded"  # ends the part of a node's name before its role


@dataclass(frozen=True)
class OnnxInput:
    """``node``: the name of the QuantizeLinear. ``scale``: a float32, ``zero_point`` from 0 to 255."""

    node: str
    scale: np.float32
    zero_point: int

    def codes(self, x: F32) -> U8:
        """U8 of F32."""
        codes: U8 = np.clip(np.rint(x / self.scale) + np.float32(self.zero_point), 0, 255).astype(np.uint8)
        return codes

    def round(self, x: F32) -> F32:
        """F32 as it is multiplied."""
        rounded: F32 = (self.codes(x).astype(np.float32) - np.float32(self.zero_point)) * self.scale
        return rounded


def static_linears(graph: Graph) -> Iterator[tuple[str, onnx.NodeProto, onnx.NodeProto]]:
    """NAME, the node that decodes its weight, and the one that multiplies by it."""
    for node in graph.model.graph.node:
        stem, _, role = node.name.rpartition("/")
        made_by = graph.producers.get(node.input[1]) if node.op_type == role == "MatMul" and len(node.input) == 2 else None
        if made_by is not None and made_by.op_type == DEQUANTIZE and made_by.name == f"{stem}/{DEQUANTIZE}":
            yield stem, made_by, node


def shape_of(graph: Graph, decoding: onnx.NodeProto) -> tuple[int, int]:
    """(OC, IC). Raises DamagedFileError for what is no matrix with a scale an output channel."""
    _check(graph, decoding, axis=1)
    dims = graph.resolve(decoding.input[0]).dims
    if len(dims) != 2 or min(dims) < 1:
        raise graph.damaged(f"codes of {decoding.name[:80]} have the shape {list(dims)[:5]}")
    return int(dims[1]), int(dims[0])


def arrays_of(graph: Graph, decoding: onnx.NodeProto) -> tuple[U8, F32, U8]:
    """Codes U8[OC, IC], scales F32[OC, 1] and zero points U8[OC, 1]. Raises DamagedFileError."""
    oc, ic = shape_of(graph, decoding)
    codes: U8 = graph.fitted(decoding.input[0], (ic, oc), "u").T
    scale, zero = graph.fitted(decoding.input[1], (oc, 1), "f"), graph.fitted(decoding.input[2], (oc, 1), "u")
    return codes, scale.astype(np.float32), zero


def rounds(graph: Graph, value: str) -> bool:
    """Whether nodes that round make ``value``."""
    node = graph.producers.get(value)
    return node is not None and node.name.endswith(f"{ROUNDED}/{DEQUANTIZE}")


def before_rounding(graph: Graph, value: str) -> str:
    """What is rounded. Raises DamagedFileError."""
    coding, _ = _rounding(graph, value)
    return str(coding.input[0])


def input_of(graph: Graph, value: str) -> OnnxInput:
    """What rounds a value on the way to a product. Raises DamagedFileError where nothing does."""
    coding, decoding = _rounding(graph, value)
    if list(coding.input[1:]) != list(decoding.input[1:]):
        raise graph.damaged(f"{coding.name[:80]} and {decoding.name[:80]} have different scales")
    scale, zero = graph.fitted(coding.input[1], (), "f"), graph.fitted(coding.input[2], (), "u")
    if not scale > 0 or not np.isfinite(scale):
        raise graph.damaged(f"{coding.name[:80]} has the scale {scale}")
    return OnnxInput(coding.name, np.float32(scale), int(zero))


def _rounding(graph: Graph, value: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The nodes that code and decode it."""
    decoding = graph.producers.get(value)
    coding = graph.producers.get(decoding.input[0]) if decoding is not None and decoding.op_type == DEQUANTIZE else None
    if decoding is None or coding is None or coding.op_type != QUANTIZE:
        raise graph.damaged(f"{value[:80]}, which integers multiply, is not rounded")
    for node in (coding, decoding):
        _check(graph, node)
    return coding, decoding


def _check(graph: Graph, node: onnx.NodeProto, **wanted: int) -> None:
    """Its inputs, and attributes that are all as they are read here."""
    held = {item.name: item.i for item in node.attribute}
    if len(node.input) != 3 or len(node.output) != 1 or held != wanted:
        told = f"{len(node.input)} inputs and the attributes {held}"
        raise graph.damaged(f"{node.name[:80]} has {told}, not 3 and {wanted}")
