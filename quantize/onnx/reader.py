"""model.onnx of any tool, without its external data: read, and checked before anybody believes it.

What is behind ``read_graph`` has names that are made once and before they are read, attributes of the types that their operators
take, and tensors whose bytes are where they are said to be: in the folder, in plain files, as many as their shape needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from onnx import IR_VERSION, AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, defs, helper, numpy_helper

from quantize.errors import FileFormatError, shown
from quantize.kinds import Wanted, mistaken
from quantize.onnx.data import Place, Problem, check_tensor, once
from quantize.outside import LARGEST, Door
from quantize.types import Array

MODEL_FILE = "model.onnx"
DOOR = Door(FileFormatError, "export it again", LARGEST)  # protobuf has no larger message
FIRST_IR = 3  # of 2017
ORTS_OWN = ("SimplifiedLayerNormalization",)  # onnxruntime has it in ONNX's own domain, ONNX has not
SIZES = {  # integers that an operator of quantized weights has: those it must have, those it may have with their defaults
    "MatMulNBits": (("K", "N", "block_size"), {"bits": 4}),
    "GatherBlockQuantized": ((), {"block_size": 128, "bits": 4}),
    "MatMulAdaDim": (("K", "N", "bits", "group_size"), {}),
    "MatMulLevels": (("K", "N", "bits", "group_size"), {}),
}


@dataclass(frozen=True)
class OnnxGraph:
    """A model whose structure holds. ``places``: by name, of initializers whose bytes lie outside of model.onnx."""

    folder: Path
    model: ModelProto
    places: Mapping[str, Place]
    locations: frozenset[str]
    metadata: Mapping[str, str]

    @cached_property
    def initializers(self) -> dict[str, TensorProto]:
        """By name."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    def mapped(self, name: str) -> Array:
        """An initializer's values where they lie."""
        place, tensor = self.places.get(name), self.initializers[name]
        if place is None or not place.length:
            return numpy_helper.to_array(tensor)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.memmap(self.folder / place.location, dtype, "r", place.offset, tuple(tensor.dims))

    def stored_bytes(self, tensor: TensorProto) -> int:
        """Of an initializer, in the external file or in the graph."""
        place = self.places.get(tensor.name)
        return int(tensor.ByteSize()) if place is None else place.length


def read_graph(folder: Path) -> OnnxGraph:
    """DIR/model.onnx. Raises FileFormatError for one that is missing, damaged, or reads what is not in the folder."""
    path = folder / MODEL_FILE
    if not path.exists():
        raise FileFormatError(mistaken(folder, Wanted.FILE))
    model = parse_model(path)
    try:
        return _checked(folder, model)
    except Problem as problem:
        raise DOOR.refused(path, str(problem)) from problem


def check_skeleton(model: ModelProto, weights: Iterable[str]) -> None:
    """A graph without its ``weights``, whose names it reads, and with all else inside. Raises Problem."""
    _check_structure(model, set(weights))
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise Problem(f"tensor {shown(tensor.name)} lies outside of it")
        check_tensor(tensor, Path(), {})


def parse_model(path: Path) -> ModelProto:
    """The file's protobuf, unchecked. Raises FileFormatError for what is none."""
    data, model = DOOR.read(path), ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError; its class moved between versions
        raise DOOR.refused(path, f"not an ONNX model ({shown(error)})") from error
    return model


def quantized_sizes(node: NodeProto) -> dict[str, int] | None:
    """The integers of a node that multiplies by codes or looks them up, None for another one. Raises FileFormatError."""
    if node.op_type not in SIZES:
        return None
    needed, optional = SIZES[node.op_type]
    held = {item.name: item for item in node.attribute}
    out = dict(optional)
    for name in (*needed, *optional):
        item = held.get(name)
        if (item is None and name not in optional) or (item is not None and not 0 < item.i <= LARGEST):
            told = "missing" if item is None else f"{item.i}"
            raise FileFormatError(f"{shown(node.name)}: its {name} is {told}, where a size should be; export it again")
        if item is not None:
            out[name] = item.i
    return out


def _check_texts(model: ModelProto) -> None:
    """protobuf gives a text that is not UTF-8 as bytes, which nobody expects."""
    waiting: list[Any] = [model]
    while waiting:
        for field, value in waiting.pop().ListFields():
            if field.type == field.TYPE_STRING:
                if not all(isinstance(text, str) for text in ([value] if isinstance(value, str | bytes) else value)):
                    raise Problem(f"a {field.name} in it is not UTF-8")
            elif field.type == field.TYPE_MESSAGE:
                waiting += [value] if hasattr(value, "ListFields") else value


def _checked(folder: Path, model: ModelProto) -> OnnxGraph:
    _check_structure(model, set())
    sizes: dict[str, int] = {}
    places = {}
    for tensor in _tensors(model):
        place = check_tensor(tensor, folder, sizes)
        if place is not None:
            places[tensor.name] = place
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return OnnxGraph(folder, model, places, frozenset(sizes), metadata)


def _check_structure(model: ModelProto, given: set[str]) -> None:
    """``given``: names of values that are there beside what the model has."""
    _check_texts(model)
    graph = model.graph
    if not graph.node:
        raise Problem("its graph is empty")
    if not FIRST_IR <= model.ir_version <= IR_VERSION:
        raise Problem(f"its ir_version is {model.ir_version}, where {FIRST_IR} to {IR_VERSION} are known")
    once((entry.key for entry in model.metadata_props), "key of its metadata")
    once((tensor.name for tensor in graph.initializer), "initializer")
    for body in (graph, *model.functions):
        imports = (model if body is graph else body).opset_import
        domains = {_domain(entry.domain): entry.version for entry in imports}
        for node in _nodes(body.node):
            _check_node(node, domains)
    for function in model.functions:
        _check_values(function.node, set(function.input), function.output)
    _check_graph(graph, given)


def _domain(name: str) -> str:
    """ONNX's own has two names."""
    return "" if name == "ai.onnx" else name


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """These, and those of the graphs in them."""
    waiting = [*nodes]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            waiting += [inner for graph in (attribute.g, *attribute.graphs) for inner in graph.node]


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every one with values: initializers of the graph first, then those in attributes, in graphs within and sparse ones."""
    yield from model.graph.initializer
    graphs = [model.graph]
    for node in _nodes([*model.graph.node, *(node for function in model.functions for node in function.node)]):
        for attribute in node.attribute:
            yield from (tensor for tensor in (attribute.t, *attribute.tensors) if tensor.ByteSize())
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (tensor for tensor in (sparse.values, sparse.indices) if tensor.ByteSize())
            inner = [graph for graph in (attribute.g, *attribute.graphs) if graph.ByteSize()]
            yield from (tensor for graph in inner for tensor in graph.initializer)
            graphs += inner
    for graph in graphs:
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def _check_graph(graph: GraphProto, made: set[str]) -> None:
    """``made``: the names that are known where the graph stands; a graph in a node sees those around it."""
    once((value.name for value in graph.input), "input")
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {sparse.values.name for sparse in graph.sparse_initializer}
    _check_values(graph.node, made | own, [value.name for value in graph.output])


def _check_values(nodes: Iterable[NodeProto], made: set[str], results: Iterable[str]) -> None:
    """Each value is made once, and before it is read, so nothing goes in circles."""
    for node in nodes:
        for name in node.input:
            if name and name not in made:
                raise Problem(f"node {shown(node.name)} reads {shown(name)}, which nothing before it makes")
        for graph in (graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs) if graph.ByteSize()):
            _check_graph(graph, made)
        for name in filter(None, node.output):
            if name in made:
                raise Problem(f"node {shown(node.name)} makes {shown(name)}, which is there already")
            made.add(name)
    once(results, "output")
    for name in results:
        if name not in made:
            raise Problem(f"its output {shown(name)} is made by no node")


def _check_node(node: NodeProto, domains: Mapping[str, int]) -> None:
    domain, name = _domain(node.domain), shown(node.name)
    if domain not in domains:
        raise Problem(f"node {name} is of the domain '{shown(domain)}', which the model does not import")
    held = {item.name: item for item in node.attribute}
    once((item.name for item in node.attribute), f"in node {name} the attribute")
    if node.op_type in SIZES:
        for key in ("K", "N", "bits", "block_size", "group_size", "per_oc", "layout"):
            if key in held and held[key].type != AttributeProto.INT and not held[key].ref_attr_name:
                raise Problem(f"node {name}: its {key} is no integer")
        if len(node.input) < 3:
            raise Problem(f"node {name} of {node.op_type} has {len(node.input)} inputs, and needs codes and scales")
    if domain or node.op_type in ORTS_OWN:
        return
    try:
        schema = defs.get_schema(node.op_type, min(max(0, domains[domain]), LARGEST))
    except defs.SchemaError as error:
        raise Problem(f"node {name}: ONNX has no operator '{shown(node.op_type)}' in opset {domains[domain]}") from error
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise Problem(f"node {name} of {node.op_type} has {len(node.input)} inputs")
    for index, value in enumerate(node.input):  # onnxruntime ends with some that are left out of a Sum
        wanted = schema.inputs[min(index, len(schema.inputs) - 1)]
        if not value and wanted.option != defs.OpSchema.FormalParameterOption.Optional:
            raise Problem(f"node {name} of {node.op_type} has no input {index + 1}")
    for key, known in schema.attributes.items():
        item = held.get(key)
        if (item is None and known.required) or (
            item is not None and AttributeProto.AttributeType.Name(item.type) != _kind(known)
        ):
            told = "missing" if item is None else f"no {_kind(known)}"
            raise Problem(f"node {name} of {node.op_type}: its attribute {key} is {told}")


def _kind(known: defs.OpSchema.Attribute) -> str:
    """Its type's name, as protobuf has it."""
    return str(known.type).rpartition(".")[2]
