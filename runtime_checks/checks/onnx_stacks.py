"""A stack of experts as onnxruntime's QMoE itself reads it: the very node of the file, its other stack put in by us.

With no activation and no biases, a token that is sent to one expert gives ``down @ up @ x``. Where one of the two only picks
channels, and x is a row of an identity matrix, that is the other's own weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from quantize.types import F32, Array
from runtime_checks.checks.onnx_parts import OnnxParts
from runtime_checks.reference.onnx_stacks import CODES, PLACES

GIVEN, PICKS, UNIT = ("x", "scores"), "picks.codes", "picks.scale"
FAR = np.float32(-1e30)  # a score of which no softmax leaves anything


def experts(parts: OnnxParts, name: str, shape: tuple[int, ...]) -> Iterator[tuple[int, slice, slice, F32]]:
    """(expert, output channels, input channels, F32[OC, IC] of these): all of a stack of ``shape`` [experts, OC, IC].

    Raises FileFormatError if onnxruntime refuses the node.
    """
    node = parts.reader(f"{name}{CODES}")
    is_up = node.input[PLACES[0][0]] == f"{name}{CODES}"
    hidden, inner = (shape[2], shape[1]) if is_up else (shape[1], shape[2])
    sizes = {item.name: item.i for item in node.attribute}
    bits, block = sizes["expert_weight_bits"], sizes["block_size"]
    identity = np.eye(hidden, dtype=np.float32)
    for start in range(0, inner, hidden):
        count = min(hidden, inner - start)
        picks = np.eye(hidden, inner, start, np.uint8) if is_up else np.eye(inner, hidden, -start, np.uint8)
        run = parts.alone(*_probe(node, is_up, _packed(picks, bits, shape[0], block)))
        for expert in range(shape[0]):
            scores = np.full((hidden, shape[0]), FAR)
            scores[:, expert] = 0
            found = run(dict(zip(GIVEN, (identity[None], scores), strict=True)))
            some, every = slice(start, start + count), slice(0, hidden)
            yield (expert, some, every, found[:, :count].T) if is_up else (expert, every, some, found[:count].T)


def _packed(picks: Array, bits: int, count: int, block: int) -> list[onnx.TensorProto]:
    """Codes 0 and 1 above the middle, for each of ``count`` experts, and scales of 1."""
    codes = picks + np.uint8(1 << bits - 1)
    if bits == 4:
        codes = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    ones = np.ones((count, len(picks), picks.shape[1] // block), np.float32)
    held = np.ascontiguousarray(np.broadcast_to(codes, (count, *codes.shape)))
    return [numpy_helper.from_array(held, PICKS), numpy_helper.from_array(ones, UNIT)]


def _probe(
    node: onnx.NodeProto, is_up: bool, picks: list[onnx.TensorProto]
) -> tuple[onnx.NodeProto, tuple[str, ...], list[onnx.TensorProto]]:
    own, other = PLACES if is_up else PLACES[::-1]
    inputs = [""] * (max(max(places) for places in PLACES) + 1)
    inputs[:2] = GIVEN
    for place in own:
        inputs[place] = node.input[place] if len(node.input) > place else ""
    inputs[other[0]], inputs[other[1]] = PICKS, UNIT
    sizes = {item.name: item.i for item in node.attribute if item.name in ("expert_weight_bits", "block_size")}
    probe = helper.make_node("QMoE", inputs, ["y"], "probe", domain=node.domain, k=1, activation_type="identity", **sizes)
    return probe, GIVEN, picks
