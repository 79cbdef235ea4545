"""A layer of experts in a graph that was made from a template, against the template's node: what it reads and what it is told."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from quantize.onnx.moe import Experts, experts_of, normalizes
from runtime_checks.measure.results import Check, within
from runtime_checks.reference.graph import Graph
from runtime_checks.reference.onnx_stacks import QMOE

EXACT = 0.0
OURS = ("expert_weight_bits", "block_size", "accuracy_level")  # what a node is told of codes
MAY_LACK = (11, 12)  # zero points
SHARES = 14  # where what the experts count for comes in, if it is not the softmax of the best scores


def layers_of(theirs: onnx.ModelProto) -> list[tuple[onnx.NodeProto, Experts]]:
    """Nodes that may take codes, and what they read."""
    return [(node, experts) for node in theirs.graph.node if (experts := experts_of(node)) is not None]


def check_layer(graph: Graph, theirs: onnx.NodeProto, experts: Experts) -> Check:
    """Counts what differs in the node that makes what ``theirs`` does."""
    node, wrong = graph.producers.get(theirs.output[0]), ["operator"]
    if node is not None and node.domain == theirs.domain and node.op_type in (theirs.op_type, QMOE):
        told, own = _attributes(theirs), _attributes(node)
        expected: dict[int, str] = dict(enumerate(experts))
        if node.op_type == QMOE:
            own = {name: value for name, value in own.items() if name not in OURS}
            up, down = experts.stacks
            expected = {0: experts.x, 1: experts.scores, 2: up, 3: up, 4: experts.up_bias, 5: down, 6: down}
            expected |= {7: experts.down_bias, 11: up, 12: down, SHARES: "" if normalizes(theirs) else experts.scores}
        wrong = [name for name in told.keys() | own.keys() if told.get(name) != own.get(name)]
        wrong += [f"input {place}" for place in _misplaced(graph, node, expected)]
    said = ", ".join(sorted(wrong)) or "all"
    return within("experts read and are told what the source's are", f"{experts.up}: {said}", len(wrong), EXACT)


def _misplaced(graph: Graph, node: onnx.NodeProto, expected: Mapping[int, str]) -> list[int]:
    held = {place: _behind(graph, value, shares=place == SHARES) for place, value in enumerate(node.input) if value}
    lacking = {place for place in MAY_LACK if place not in held} if node.op_type == QMOE else set[int]()
    return [
        place
        for place in held.keys() | expected.keys()
        if held.get(place, "") != expected.get(place, "") and place not in lacking
    ]


def _behind(graph: Graph, value: str, shares: bool) -> str:
    """The weight that an initializer is a part of, widened or not; of shares the scores that they are the softmax of."""
    made = graph.producers.get(value)
    if shares:
        return made.input[0] if made is not None and made.op_type == "Softmax" and len(made.input) == 1 else value
    if made is not None and made.op_type == "Cast" and made.input[0] in graph.initializers:
        value = made.input[0]
    stem, part, _ = value.partition(".weight.")
    return f"{stem}.weight" if part and value in graph.initializers else value


def _attributes(node: onnx.NodeProto) -> Mapping[str, bytes]:
    return {item.name: item.SerializeToString(deterministic=True) for item in node.attribute}
