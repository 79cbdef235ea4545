"""A graph that was made from a template, against the template's own: everything in it that holds no weight, and what each weight
reads and makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from exporter.onnx.float16 import retyped
from quantize.checkpoint.onnx_template import OnnxTemplate
from quantize.onnx.template import site
from quantize.types import Array
from runtime_checks.checks.experts_check import check_layer, layers_of
from runtime_checks.measure.results import Check, within
from runtime_checks.reference.graph import Graph
from runtime_checks.reference.onnx_qdq import ROUNDED, before_rounding, rounds
from runtime_checks.reference.onnx_turn import TURNED, before_turn, turns
from runtime_checks.runtimes.onnx_runner import is_halved

EXACT = 0.0  # nodes, values and sizes are as they were or they are not
TABLES = ("cos_cache", "sin_cache")  # endings of what is cut to the exported context
OURS = ("com.microsoft", "ai.adadim")  # domains that a file may import beside its template's
PARTS = (".sum", ".part", TURNED, ROUNDED)  # after a weight's name, of the nodes that hold it with others


def check_against(graph: Graph, source: OnnxTemplate) -> list[Check]:
    """Raises DamagedFileError."""
    ours = graph.model
    theirs = retyped(source.skeleton) if is_halved(ours) else source.skeleton
    layers = layers_of(theirs)
    sites = {name for name, _ in _weight_nodes(theirs)} | {site(name) for _, one in layers for name in one.stacks}
    apart = {node.output[0] for node, _ in layers}
    kept = [node for node in theirs.graph.node if node.name.rpartition("/")[0] not in sites and node.output[0] not in apart]
    found = [node for node in ours.graph.node if _site_of(node, sites) is None and apart.isdisjoint(node.output)]
    checks = [_same("nodes = source's", kept, found)]
    for what in ("input", "output"):
        checks.append(_same(f"{what}s = source's", getattr(theirs.graph, what), getattr(ours.graph, what)))
    checks.append(_same("functions = source's", theirs.functions, [one for one in ours.functions if one.domain not in OURS[1:]]))
    known = {entry.domain: entry.version for entry in theirs.opset_import}
    strange = [one.domain for one in ours.opset_import if one.domain not in OURS and known.get(one.domain) != one.version]
    checks.append(within("operators' versions = source's", ", ".join(strange) or "all", len(strange), EXACT))
    for tensor in theirs.graph.initializer:
        held = graph.initializers.get(tensor.name)
        same = held is not None and _begins(graph.array(held), numpy_helper.to_array(tensor), tensor.name.endswith(TABLES))
        checks.append(within("constant = source's", tensor.name, float(not same), EXACT))
    checks += [check_layer(graph, node, experts) for node, experts in layers]
    return checks + [_check_site(graph, name, node) for name, node in _weight_nodes(theirs)]


def _same(name: str, expected: Iterable[Any], held: Iterable[Any]) -> Check:  # protobuf has no types
    """How many of one side the other has not."""
    one, two = (Counter(each.SerializeToString(deterministic=True) for each in side) for side in (expected, held))
    return within(name, "all", ((one - two) + (two - one)).total(), EXACT)


def _weight_nodes(theirs: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """The node that multiplies by a weight or looks it up, and the name before its role."""
    made = {tensor.name for tensor in theirs.graph.initializer} | {name for node in theirs.graph.node for name in node.output}
    given = {value.name for value in theirs.graph.input}
    turned = {
        node.output[0]
        for node in theirs.graph.node
        if node.op_type == "Transpose" and node.input[0] not in made | given and node.name.endswith("/Transpose")
    }
    for node in theirs.graph.node:
        free = node.op_type == "Gather" and node.input[0] not in made | given
        if free or (node.op_type == "MatMul" and node.input[1] in turned):
            yield node.name.rpartition("/")[0], node


def _site_of(node: onnx.NodeProto, sites: set[str]) -> str | None:
    """The weight that it is a part of."""
    stem = node.name.rpartition("/")[0]
    if stem in sites:
        return stem
    whole = next((stem.rpartition(part)[0] for part in PARTS if part in stem), "")
    return whole if whole in sites else None


def _check_site(graph: Graph, name: str, expected: onnx.NodeProto) -> Check:
    """What holds a weight reads what the source's node reads, and makes what that makes, and neither more."""
    own = [node for node in graph.model.graph.node if _site_of(node, {name}) == name]
    made = {value for node in own for value in node.output}
    read = {value for node in own for value in node.input if value} - made
    x = expected.input[1] if expected.op_type == "Gather" else expected.input[0]
    given = {_before(graph, value) for value in read if value not in graph.initializers and not _is_constant(graph, value)}
    strange = given ^ {x}
    wanted = expected.output[0] not in made
    return within("reads and makes what the source's does", name, len(strange) + int(wanted), EXACT)


def _before(graph: Graph, value: str) -> str:
    """What is rounded or turned, where nodes do that for several weights; else the value itself."""
    value = before_rounding(graph, value) if rounds(graph, value) else value
    return before_turn(graph, value) if turns(graph, value) else value


def _is_constant(graph: Graph, value: str) -> bool:
    """Whether it is made of initializers alone, as scales that two weights share."""
    node = graph.producers.get(value)
    return node is not None and all(name in graph.initializers or _is_constant(graph, name) for name in node.input if name)


def _begins(held: Array, whole: Array, cut: bool) -> bool:
    """Whether ``held`` is all of it, or, if it may be ``cut``, its first rows."""
    wanted = whole[: max(1, len(held))] if cut and held.ndim else whole
    return held.dtype == whole.dtype and np.array_equal(held, wanted)
