"""mobius-onnx with one MoE for a layer of experts, where its own graph computes each for every token. Imports nothing of ours.

Its layers keep an expert's matrices apart. In place of their forward, a node of a domain of our own reads these matrices; when
the graph is built it becomes an initializer. Whether a layer computes anything beside that is not asked here: whoever uses the
graph compares it with torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

STACKS = "adadim.stacks"
PARTS = GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"
BOTH = "gate_up_proj"  # rows in turn


def replace_layers() -> None:
    """Of mobius's two kinds, before anything is built."""
    from mobius.components import MoELayer
    from mobius.models import gptoss

    MoELayer.forward = gptoss._GptOssMoELayer.forward = _forward


def fold(graphs: Iterable[Any]) -> None:
    """Put the stacks of weights in place of the nodes that stand for them. Raises ValueError where there are none."""
    found = [(graph, node) for graph in graphs for node in graph if node.domain == STACKS]
    if not found:
        raise ValueError("it has no layer of experts of the kinds that are known")
    for graph, node in found:
        _fold(graph, node)


def _forward(layer: Any, op: Any, hidden: Any) -> Any:  # noqa: ANN401 - mobius has no types
    """Scores, and what the experts that have the best ones make of ``hidden``."""
    layer.gate.forward = partial(_scores, layer.gate)
    scores = op.Reshape(layer.gate(op, hidden), [-1, layer.num_experts])
    own = [_parameters(expert, op) for expert in layer.experts]
    up, down = ([op.Stack(*one, _domain=STACKS) for one in each] for each in (_sorted(own, GATE, UP), _sorted(own, DOWN)))
    (up, up_bias), (down, down_bias) = ((*each, None)[:2] for each in (up, down))
    shares = int(getattr(layer.gate, "norm_topk_prob", True))
    told = {"activation_type": "swiglu", "swiglu_fusion": 1, "k": layer.top_k, "normalize_routing_weights": shares}
    return op.MoE(hidden, scores, up, up_bias, down, down_bias, _domain="com.microsoft", **told, **_bounds(layer.experts[0]))


def _bounds(expert: Any) -> dict[str, float]:  # noqa: ANN401
    """gpt-oss has a bound, a slope, and one more than up."""
    if not hasattr(expert, "_LIMIT"):
        return {"activation_alpha": 1.0, "activation_beta": 0.0}
    return {"activation_alpha": expert._ALPHA, "activation_beta": 1.0, "swiglu_limit": expert._LIMIT}


def _scores(gate: Any, op: Any, hidden: Any) -> Any:  # noqa: ANN401
    found = op.MatMul(hidden, op.Transpose(gate.weight, perm=[1, 0]))
    return op.Add(found, gate.bias) if hasattr(gate, "bias") else found


def _parameters(expert: Any, op: Any) -> dict[str, list[Any]]:  # noqa: ANN401
    """Of each of its linears a weight, and a bias if it has one. They get their names in calls of the modules that hold them."""
    linears = {name: getattr(expert, name) for name in PARTS}
    for linear in linears.values():
        linear.forward = partial(_own, linear)
    expert.forward = partial(_each, linears)
    found: dict[str, list[Any]] = expert(op)
    return found


def _own(linear: Any, _: Any) -> list[Any]:  # noqa: ANN401
    return [linear.weight] if linear.bias is None else [linear.weight, linear.bias]


def _each(linears: Mapping[str, Any], op: Any) -> dict[str, list[Any]]:  # noqa: ANN401
    return {name: linear(op) for name, linear in linears.items()}


def _sorted(experts: Sequence[Mapping[str, list[Any]]], *names: str) -> list[list[Any]]:
    """All weights of those linears, expert by expert, and all biases."""
    return [list(one) for one in zip(*(expert[name] for expert in experts for name in names), strict=True)]


def _fold(graph: Any, node: Any) -> None:  # noqa: ANN401 - onnx_ir's
    import onnx_ir as ir

    own, name = list(node.inputs), node.inputs[0].name
    together = 2 if f".{GATE}." in name else 1
    rows, *columns = own[0].const_value.shape.numpy()
    shape = ir.Shape([len(own) // together, rows * together, *columns])
    name = name.replace(f".0.{GATE}.", f".{BOTH}.").replace(f".0.{DOWN}.", f".{DOWN}.")
    read = partial(_stacked, [value.const_value for value in own], together)
    tensor = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=shape, name=name)
    stack = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    ir.convenience.replace_all_uses_with(node.outputs[0], stack)
    graph.register_initializer(stack)
    graph.remove(node, safe=True)
    for value in own:
        graph.initializers.pop(value.name)


def _stacked(own: Sequence[Any], together: int) -> Any:  # noqa: ANN401
    """[experts, rows, ...]; in memory only while it is written."""
    import numpy as np
    import onnx_ir as ir

    experts = [np.stack([one.numpy() for one in own[i : i + together]], 1) for i in range(0, len(own), together)]
    return ir.tensor(np.stack([expert.reshape(-1, *expert.shape[2:]) for expert in experts]))
