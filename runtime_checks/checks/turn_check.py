"""Turns of inputs in an ONNX folder: what the store, or the file itself, says of each, and what onnxruntime makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from quantize.block_turn import BlockTurn, FoundTurn
from quantize.store.tensors import QuantizedStore
from quantize.turn import Rotation, Turn
from quantize.types import F32, Array
from runtime_checks.checks.onnx_parts import OnnxParts
from runtime_checks.measure.results import Check, within
from runtime_checks.reference.onnx_tensor import OnnxTensor
from runtime_checks.reference.onnx_turn import OP_TYPE, TURNED, OnnxBlockTurn, OnnxTurn

EXACT = 0.0  # signs, factors, matrices and orders are those of the turn or they are not
# Of an identity matrix a sum has one term, and what is rounded is a root and a quotient, at most .25; a graph of float16 rounds
# once more.
TURN_TOLERANCE = 1e-6
HALF_TURN_TOLERANCE = 2.0**-13
# Of blocks a sum has up to 64 terms, whose products are below 1 together; float16 rounds what is at most 1.
BLOCKS_TOLERANCE = 2e-6
HALF_BLOCKS_TOLERANCE = 2.0**-11
ORTHOGONAL = 1e-3  # what a store may have, and one that was found is far below


def check_turns(tensors: Mapping[str, OnnxTensor], parts: OnnxParts, store: QuantizedStore | None) -> list[Check]:
    """Everything that turns is before a weight with codes, does in onnxruntime what the reference says, and is the store's."""
    found = {name: turn for name, tensor in tensors.items() if (turn := tensor.turn()) is not None}
    nodes = {node.rpartition("/")[0] for node in parts.nodes_of(OP_TYPE)} | parts.sites_ending(TURNED)
    idle = nodes - {turn.node.rpartition("/")[0] for turn in found.values()}
    checks = [within("turns that no codes are behind", ", ".join(sorted(idle)[:3]) or "none", len(idle), EXACT)] if nodes else []
    for turn in {turn.node: turn for turn in found.values()}.values():
        checks.append(within("onnxruntime = reference, turned", turn.node, _error(turn, parts), _tolerance(turn, parts.halved)))
        if isinstance(turn, OnnxBlockTurn):
            off = max(float(np.abs(one @ one.T - np.eye(len(one))).max()) for one in (turn.first, turn.second))
            checks.append(within("turn is orthogonal", turn.node, off, ORTHOGONAL))
    for name, record in ({} if store is None else store.records).items():
        if name in tensors and (name in found or record.turn is not None or record.found_turn is not None):
            expected = None if store is None else store.turn(name)
            checks.append(within("turn = store's", name, turn_difference(found.get(name), expected), EXACT))
    return checks


def turn_difference(held: OnnxTurn | OnnxBlockTurn | None, expected: Turn | FoundTurn | None) -> float:
    """How many signs, of channels and in factors, or entries of matrices and orders, are not those that are expected.

    Infinity for a turn of another kind. Of one that was found the size is all that is claimed.
    """
    if held is None or expected is None:
        return 0.0 if held is None and expected is None else math.inf
    if isinstance(expected, FoundTurn):
        return 0.0 if isinstance(held, OnnxBlockTurn) and len(held.first) == expected.size else math.inf
    pairs = _pairs(held, expected)
    if not pairs or any(one.shape != other.shape for one, other in pairs):
        return math.inf
    return float(sum(np.count_nonzero(one != other) for one, other in pairs))


def _pairs(held: OnnxTurn | OnnxBlockTurn, expected: Turn) -> list[tuple[Array, Array]]:
    """What has to be equal; none for turns of two kinds."""
    if isinstance(held, OnnxTurn) and isinstance(expected, Rotation):
        signs = held.signs, expected.signs(len(held.signs))
        return [signs, (held.left, expected.left), (held.right, expected.right)]
    if isinstance(held, OnnxBlockTurn) and isinstance(expected, BlockTurn):
        matrices = [(held.first, expected.first.T), (held.second, expected.second.T)]
        return [*matrices, (held.order, expected.order)]
    return []


def _tolerance(turn: OnnxTurn | OnnxBlockTurn, halved: bool) -> float:
    if isinstance(turn, OnnxBlockTurn):
        return HALF_BLOCKS_TOLERANCE if halved else BLOCKS_TOLERANCE
    return HALF_TURN_TOLERANCE if halved else TURN_TOLERANCE


def _error(turn: OnnxTurn | OnnxBlockTurn, parts: OnnxParts) -> float:
    """The largest difference of R, which onnxruntime gives transposed for an identity matrix."""
    channels, error = turn.channels, 0.0
    for start, rows in parts.linear(turn.node.rpartition("/")[0], (channels, channels)):
        unit: F32 = np.eye(channels, dtype=np.float32)
        expected = turn.back(unit)[:, start : start + len(rows)].T
        off = np.abs(rows - expected).max() if rows.shape == expected.shape else math.inf
        error = np.maximum(error, off)  # unlike max(), this keeps a nan
    return float(error)
