"""What an ONNX graph holds besides weights, all of it: rotary tables, accuracy levels, nodes, the bytes between tensors."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx

from exporter.onnx.adadim_op import DOMAIN
from exporter.onnx.plan import BODIES
from quantize.checkpoint.onnx_template import OnnxTemplate
from quantize.checkpoint.protocol import Checkpoint
from quantize.model_config import named
from quantize.types import F32, Array
from runtime_checks.checks.template_check import check_against
from runtime_checks.measure.results import Check, within
from runtime_checks.reference.graph import Graph

EXACT = 0.0  # levels, nodes and padding are as they should be or they are not
# Two float32 ways to one table differ in the last bit, 1.2e-7 where yarn makes cosines larger than 1; a neighbouring
# position of the slowest frequency of a long context differs by 1e-5 and more.
TABLE_TOLERANCE = 5e-7  # at position 0
DRIFT = 0.5  # of that, more for each position: a frequency's last bit differs from one instruction set to another
LEVEL = "accuracy_level"
LEVELLED = ("MatMulNBits", "MatMulAdaDim", "MatMulLevels", "QMoE")


def check_graph(folder: Path, source: Checkpoint) -> list[Check]:
    """Raises FileFormatError or DamagedFileError for a folder that is no ONNX model."""
    graph = Graph(folder)
    dead = _dead_nodes(graph.model.graph)
    return [
        *(check_against(graph, source) if isinstance(source, OnnxTemplate) else _check_tables(graph, source)),
        *_check_levels(graph.model),
        *_check_bodies(graph.model),
        within("nodes that no output needs", ", ".join(dead[:3]) or "all", len(dead), EXACT),
        *(within("bytes between tensors that are not 0", name, count, EXACT) for name, count in _stray_bytes(graph).items()),
    ]


def _check_tables(graph: Graph, source: Checkpoint) -> list[Check]:
    """Every position of every rotary table, however short the texts that are run."""
    from quantize.source import rotary_tables

    held = {name: graph.array(tensor) for name, tensor in graph.initializers.items() if name.endswith(("cos_cache", "sin_cache"))}
    cos, sin = rotary_tables(named(source.config, source.path), max((len(table) for table in held.values()), default=0))
    return [
        within(
            "rotary table = transformers'", name, _distance(table, cos if name.endswith("cos_cache") else sin), TABLE_TOLERANCE
        )
        for name, table in held.items()
    ]


def _distance(held: Array, expected: F32) -> float:
    """The largest difference F32[positions, head_dim / 2], by what is allowed more at its position; of F16 what is left of it
    after rounding to the nearest half."""
    expected = expected[: len(held)]
    if held.shape != expected.shape:
        return math.inf
    positions = np.arange(len(held))[:, None]
    error = np.abs(held - expected)
    if held.dtype == np.float16:
        error = np.maximum(error - np.abs(np.spacing(expected.astype(np.float16))) / np.float32(2), 0)
    return float((error / (1 + DRIFT * positions)).max(initial=0.0))


def _check_levels(model: onnx.ModelProto) -> list[Check]:
    """One level for all nodes that have one: what the metadata say, or the first node's where they say nothing."""
    levels = {node.name: _level(node) for node in model.graph.node if node.op_type in LEVELLED}
    said = {entry.key: entry.value for entry in model.metadata_props}.get(f"adadim.{LEVEL}")
    expected = said if said is not None else next(iter(levels.values()), "0")
    other = [name for name, level in levels.items() if level != expected]
    return [within(f"accuracy level = {expected}", ", ".join(other[:3]) or "all", len(other), EXACT)]


def _check_bodies(model: onnx.ModelProto) -> list[Check]:
    """What computes our operators where the library is not loaded: a run with it sees nothing of them."""
    held = {body.name: body for body in model.functions if body.domain == DOMAIN}
    other = [name for name, body in held.items() if name not in BODIES or body != BODIES[name]()]
    return [within("operators' bodies = the specification's", ", ".join(other) or "all", len(other), EXACT)] if held else []


def _level(node: onnx.NodeProto) -> str:
    return next((str(item.i) for item in node.attribute if item.name == LEVEL), "0")


def _dead_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names (or types) of nodes that no output of the model is made from."""
    needed, dead = {value.name for value in graph.output}, list[str]()
    for node in reversed(graph.node):  # in topological order
        if needed.isdisjoint(node.output):
            dead.append(node.name or node.op_type)
        else:
            needed.update(node.input)
    return dead


def _stray_bytes(graph: Graph) -> dict[str, int]:
    """How many bytes are not 0 where no tensor lies, by name of the external file."""
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for tensor in graph.initializers.values():
        place = {entry.key: entry.value for entry in tensor.external_data}
        if {"location", "length"} <= place.keys():
            graph.array(tensor)  # refuses a place that is not in the file
            start = int(place.get("offset", 0))
            spans[place["location"]].append((start, start + int(place["length"])))
    counts = {}
    for name, places in spans.items():
        data, end, count = graph.map(graph.folder / name), 0, 0
        for start, stop in sorted(places):
            count += int(np.count_nonzero(data[end:start]))
            end = max(end, stop)
        counts[name] = count
    return counts
