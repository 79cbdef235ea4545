"""A node of MatMulLevels by its specification (docs/reference/matmul-levels.md): shapes are compared before anything is read.

Single levels lie as MatMulAdaDim's codes do (``tiles``). Of pairs a block of 32 input channels has four steps of four codes::

    4 bits   line p // 2, step p in the low nibble if p is even
    6 bits   line p, step p in bits 0 to 5, if p < 3; of step 3 the bits 2 l and 2 l + 1 in the highest two of line l
"""

from __future__ import annotations

import numpy as np
import onnx

from runtime_checks.reference.decode import U8, Array
from runtime_checks.reference.graph import Graph
from runtime_checks.reference.onnx_tensor import ALL, OnnxCodes
from runtime_checks.reference.tiles import STEP, STEPS, TILE, tile_codes, tile_scales

WIDTHS = {1: (2, 3, 4), 2: (4, 6)}  # of a code, by the number of input channels that it stands for


def read_levels(graph: Graph, nodes: list[onnx.NodeProto], rows: slice = ALL) -> OnnxCodes:
    """What the codes stand for, in place of codes. Raises DamagedFileError."""
    (node,) = nodes
    if len(node.input) < 4:
        raise graph.damaged(f"{node.name[:80]} has {len(node.input)} inputs")
    a = graph.integers(node, "K", "N", "bits", "group_size", "per_oc", "layout")
    sides = graph.resolve(node.input[3]).dims
    dims, bits, per_oc = sides[0] if len(sides) == 2 else 0, a["bits"], bool(a["per_oc"])
    alone = dims == 1 or (per_oc and dims and a["K"] % dims == 0)
    if bits not in WIDTHS.get(dims, ()) or not alone or a["group_size"] < 1 or a["layout"] != 1 or a["per_oc"] > 1:
        told = f"{bits} bits, levels {list(sides)[:5]}, K {a['K']}, groups of {a['group_size']}, layout {a['layout']}"
        raise graph.damaged(f"{node.name[:80]} has {told}, which is not specified")
    if a["N"] < 1 or a["K"] < 1:
        raise graph.damaged(f"{node.name[:80]} has {a['N']} rows and {a['K']} columns")
    table = graph.fitted(node.input[3], (dims, 1 << bits), "i")
    n, cols = (a["N"], a["K"]) if per_oc else (a["K"], a["N"])
    groups, tiles, blocks = -(-cols // a["group_size"]), -(-a["N"] // TILE), -(-a["K"] // (STEPS * STEP))
    packed = graph.fitted(node.input[1], (tiles, blocks * bits // dims * TILE * STEP), "u")
    outputs = table[0][tile_codes(packed, bits)] if dims == 1 else table.T[_pairs(packed, bits)].reshape(tiles * TILE, -1)
    stored = (outputs if per_oc else outputs.T)[:n, :cols]
    scale = tile_scales(_scales(graph, node, per_oc, (n, groups, tiles)), groups, per_oc)[:n].astype(np.float32)
    none = np.zeros((n, groups), np.uint8)
    return OnnxCodes(stored[rows], scale[rows], none[rows], a["group_size"], per_oc, table)


def _scales(graph: Graph, node: onnx.NodeProto, per_oc: bool, counts: tuple[int, int, int]) -> Array:
    rows, groups, tiles = counts
    if per_oc:
        return graph.fitted(node.input[2], (tiles, groups * TILE), "f")
    inputs = graph.resolve(node.input[2]).dims
    return graph.fitted(node.input[2], (groups, max(rows, inputs[-1] if inputs else 0)), "f")


def _pairs(packed: U8, bits: int) -> U8:
    """U8[tiles, bytes] -> codes U8[tiles * 16, blocks * 16], filling included."""
    lines = packed.reshape(len(packed), -1, bits // 2, TILE, STEP)
    if bits == 4:
        steps = [lines[:, :, p // 2] >> np.uint8(4 * (p % 2)) & np.uint8(15) for p in range(4)]
    else:
        low, high = lines & np.uint8(63), lines >> np.uint8(6)
        steps = [
            low[:, :, 0],
            low[:, :, 1],
            low[:, :, 2],
            high[:, :, 0] + high[:, :, 1] * np.uint8(4) + high[:, :, 2] * np.uint8(16),
        ]
    return np.stack(steps, axis=2).transpose(0, 3, 1, 2, 4).reshape(len(packed) * TILE, -1)
