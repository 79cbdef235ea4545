"""A node of MatMulAdaDim by its specification (docs/reference/matmul-adadim.md): shapes are compared before anything is read."""

from __future__ import annotations

import math

import onnx

from runtime_checks.reference.decode import U8, Array, unpack
from runtime_checks.reference.graph import Graph
from runtime_checks.reference.tiles import STEP, STEPS, TILE, tile_codes, tile_scales, tile_zero_points

Stored = tuple[U8, Array, U8]  # codes, scales, zero points


def _plain_layout(graph: Graph, node: onnx.NodeProto, a: dict[str, int], shape: tuple[int, int]) -> Stored:
    """Layout 0: one row after the other."""
    (n, cols), bits = shape, a["bits"]
    groups = -(-cols // a["group_size"])
    codes = unpack(graph.fitted(node.input[1], (n, -(-cols * bits // 8)), "u"), bits, cols)
    width = -(-groups * bits // 8)
    shared = math.prod(graph.resolve(node.input[3]).dims) == width
    zero = unpack(graph.fitted(node.input[3], (1 if shared else n, width), "u"), bits, groups)
    return codes, graph.fitted(node.input[2], (n, groups), "f"), zero


def _tiled_layout(graph: Graph, node: onnx.NodeProto, a: dict[str, int], shape: tuple[int, int]) -> Stored:
    """Layout 1: see ``tiles``."""
    (n, cols), bits, per_oc = shape, a["bits"], bool(a["per_oc"])
    groups, tiles, blocks = -(-cols // a["group_size"]), -(-a["N"] // TILE), -(-a["K"] // (STEPS * STEP))
    outputs = tile_codes(graph.fitted(node.input[1], (tiles, blocks * bits * TILE * STEP), "u"), bits)
    codes = (outputs if per_oc else outputs.T)[:n, :cols]
    width, dims = 4 if bits == 3 else bits, graph.resolve(node.input[3]).dims
    if per_oc:
        scale = graph.fitted(node.input[2], (tiles, groups * TILE), "f")
        words = -(-groups * width // 32)
        zero = (1, 4 * words) if math.prod(dims) == 4 * words else (tiles, 4 * words * TILE)
    else:
        inputs = graph.resolve(node.input[2]).dims
        scale = graph.fitted(node.input[2], (groups, max(n, inputs[-1] if inputs else 0)), "f")
        zero = (groups, dims[-1] if dims else 0)
        if zero[1] != 1 and zero[1] * 8 // width < n:
            raise graph.damaged(f"zero points of {node.name[:80]} have the shape {list(dims)}")
    stored = graph.fitted(node.input[3], zero, "u")
    return codes, tile_scales(scale, groups, per_oc)[:n], tile_zero_points(stored, bits, groups, per_oc)[:n]


LAYOUTS = {0: _plain_layout, 1: _tiled_layout}
