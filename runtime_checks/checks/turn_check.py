"""Turns of inputs in an ONNX folder: what the store, or the file itself, says of each, and what onnxruntime makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from quantize.store.tensors import QuantizedStore
from quantize.turn import Rotation
from quantize.types import F32
from runtime_checks.checks.onnx_parts import OnnxParts
from runtime_checks.measure.results import Check, within
from runtime_checks.reference.onnx_tensor import OnnxTensor
from runtime_checks.reference.onnx_turn import OP_TYPE, OnnxTurn

EXACT = 0.0  # signs and factors are those of the turn or they are not
# Of an identity matrix a sum has one term, and what is rounded is a root and a quotient, at most .25; a graph of float16 rounds
# once more.
TURN_TOLERANCE = 1e-6
HALF_TURN_TOLERANCE = 2.0**-13


def check_turns(tensors: Mapping[str, OnnxTensor], parts: OnnxParts, store: QuantizedStore | None) -> list[Check]:
    """Every node that turns is before a weight with codes, does in onnxruntime what the reference says, and is the store's."""
    found = {name: turn for name, tensor in tensors.items() if (turn := tensor.turn()) is not None}
    nodes = parts.nodes_of(OP_TYPE)
    idle = nodes - {turn.node for turn in found.values()}
    checks = [within("turns that no codes are behind", ", ".join(sorted(idle)[:3]) or "none", len(idle), EXACT)] if nodes else []
    for turn in {turn.node: turn for turn in found.values()}.values():
        tolerance = HALF_TURN_TOLERANCE if parts.halved else TURN_TOLERANCE
        checks.append(within("onnxruntime = reference, turned", turn.node, _error(turn, parts), tolerance))
    for name, record in ({} if store is None else store.records).items():
        if name in tensors and (name in found or record.turn is not None):
            checks.append(within("turn = store's", name, turn_difference(found.get(name), record.turn), EXACT))
    return checks


def turn_difference(held: OnnxTurn | None, expected: Rotation | None) -> float:
    """How many signs, of channels and in factors, are not those that are expected; infinity for a turn of another kind."""
    if held is None or expected is None:
        return 0.0 if held is None and expected is None else math.inf
    pairs = (
        (held.signs, expected.signs(len(held.signs))),
        (held.left, expected.left),
        (held.right, expected.right),
    )
    if any(one.shape != other.shape for one, other in pairs):
        return math.inf
    return float(sum(np.count_nonzero(one != other) for one, other in pairs))


def _error(turn: OnnxTurn, parts: OnnxParts) -> float:
    """The largest difference of R, which onnxruntime gives transposed for an identity matrix."""
    channels, error = len(turn.signs), 0.0
    for start, rows in parts.linear(turn.node.rpartition("/")[0], (channels, channels)):
        unit: F32 = np.eye(channels, dtype=np.float32)
        expected = turn.back(unit)[:, start : start + len(rows)].T
        off = np.abs(rows - expected).max() if rows.shape == expected.shape else math.inf
        error = np.maximum(error, off)  # unlike max(), this keeps a nan
    return float(error)
