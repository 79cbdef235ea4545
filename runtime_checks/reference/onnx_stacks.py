"""Stacks of experts in an ONNX folder: what a ``com.microsoft::QMoE`` multiplies by, read from its bytes.

::

    inputs 2, 5     NAME.codes U8[experts, OC, IC * bits / 8], low bits first
    inputs 3, 6     scales [experts, OC, IC / block], F32, or F16 behind a Cast to F32
    inputs 11, 12   zero points U8[experts, OC, ceil(blocks * bits / 8)], or absent: 2**(bits - 1)

The rows of all experts are read as those of one matrix. The name is told by the codes, for the node holds two weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx

from runtime_checks.reference.decode import unpack
from runtime_checks.reference.graph import Graph
from runtime_checks.reference.onnx_tensor import OnnxCodes, OnnxTensor

QMOE, CODES = "QMoE", ".codes"
PLACES = ((2, 3, 11), (5, 6, 12))  # codes, scales, zero points
LEAST_BLOCK = 16


def stacks_of(graph: Graph) -> Iterator[OnnxTensor]:
    """Two for each QMoE. Raises DamagedFileError."""
    for node in graph.model.graph.node:
        if node.op_type == QMOE:
            for places in PLACES:
                if len(node.input) <= places[1]:
                    raise graph.damaged(f"{node.name[:80]} has {len(node.input)} inputs")
                yield _stack(graph, node, places)


def _stack(graph: Graph, node: onnx.NodeProto, places: tuple[int, int, int]) -> OnnxTensor:
    held, (bits, block) = graph.resolve(node.input[places[0]]), _sizes(graph, node)
    name, dims = held.name.removesuffix(CODES), tuple(held.dims)
    if name == held.name or len(dims) != 3 or 0 in dims or dims[2] * 8 % (bits * block):
        raise graph.damaged(
            f"{held.name[:80]} of shape {list(dims)[:5]} is no stack of codes of {bits} bits in blocks of {block}"
        )
    shape = (dims[0], dims[1], dims[2] * 8 // bits)
    return OnnxTensor(name, "qmoe", "U8", shape, read_codes=partial(_codes, graph, node, places, shape))


def _sizes(graph: Graph, node: onnx.NodeProto) -> tuple[int, int]:
    """Bits, and codes of a block."""
    sizes = graph.integers(node, "block_size", expert_weight_bits=4)
    bits, block = sizes["expert_weight_bits"], sizes["block_size"]
    if bits not in (4, 8) or block < LEAST_BLOCK or block & block - 1:
        raise graph.damaged(f"{node.name[:80]} has blocks of {block} codes of {bits} bits")
    return bits, block


def _codes(
    graph: Graph, node: onnx.NodeProto, places: tuple[int, int, int], shape: tuple[int, int, int], rows: slice
) -> OnnxCodes:
    """``rows`` of all experts' rows."""
    bits, block = _sizes(graph, node)
    count, columns = math.prod(shape[:2]), shape[2]
    groups = columns // block
    codes = unpack(graph.fitted(node.input[places[0]], (count, columns * bits // 8), "u")[rows], bits, columns)
    scale = graph.fitted(node.input[places[1]], (count, groups), "f")[rows].astype(np.float32)
    zero = np.full(scale.shape, 1 << bits - 1, np.uint8)
    if len(node.input) > places[2] and node.input[places[2]]:
        zero = unpack(graph.fitted(node.input[places[2]], (count, -(-groups * bits // 8)), "u")[rows], bits, groups)
    return OnnxCodes(codes, scale, zero, block, True)
