"""model.onnx of any tool, without its external data: read, and checked before anybody believes it.

What is behind ``read_graph`` has names that are made once and before they are read, attributes of the types that their operators
take, and tensors whose bytes are where they are said to be: in the folder, in plain files, as many as their shape needs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from onnx import IR_VERSION, AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, defs

from quantize.errors import FileFormatError, shown
from quantize.kinds import Wanted, mistaken
from quantize.outside import LARGEST, Door, open_regular

MODEL_FILE = "model.onnx"
DOOR = Door(FileFormatError, "export it again", LARGEST)  # protobuf has no larger message
FIRST_IR = 3  # of 2017
MOST_DIMS = 16
WIDTHS: dict[int, int] = {  # bits of an element where they are not 8
    **dict.fromkeys((TensorProto.COMPLEX128,), 128),
    **dict.fromkeys((TensorProto.INT64, TensorProto.UINT64, TensorProto.DOUBLE, TensorProto.COMPLEX64), 64),
    **dict.fromkeys((TensorProto.INT32, TensorProto.UINT32, TensorProto.FLOAT), 32),
    **dict.fromkeys((TensorProto.INT16, TensorProto.UINT16, TensorProto.FLOAT16, TensorProto.BFLOAT16), 16),
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1), 4),
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 2),
}
ORTS_OWN = ("SimplifiedLayerNormalization",)  # onnxruntime has it in ONNX's own domain, ONNX has not
SIZES = {  # integers that an operator of quantized weights has: those it must have, those it may have with their defaults
    "MatMulNBits": (("K", "N", "block_size"), {"bits": 4}),
    "GatherBlockQuantized": ((), {"block_size": 128, "bits": 4}),
    "MatMulAdaDim": (("K", "N", "bits", "group_size"), {}),
}
_NUMBER = re.compile(r"[0-9]{1,18}")


class _Problem(Exception):
    """What is wrong, without the file's name."""


@dataclass(frozen=True)
class Place:
    """Where an initializer's bytes lie: in which file of the folder, from which byte on, how many."""

    location: str
    offset: int
    length: int


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
    except _Problem as problem:
        raise DOOR.refused(path, str(problem)) from problem


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


def inside(folder: Path, name: str) -> int:
    """How large a file of a folder is. Raises OSError for a link, a name that leads elsewhere, and what is no plain file."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise OSError(f"'{shown(name)}' is no name in the folder")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise OSError(f"{shown(name)} is a link, and what it leads to is not read; put the file itself there")
    try:
        with open_regular(path) as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise OSError(f"{shown(name)}: {(error.strerror or str(error)).lower()}") from error


def _check_texts(model: ModelProto) -> None:
    """protobuf gives a text that is not UTF-8 as bytes, which nobody expects."""
    waiting: list[Any] = [model]
    while waiting:
        for field, value in waiting.pop().ListFields():
            if field.type == field.TYPE_STRING:
                if not all(isinstance(text, str) for text in ([value] if isinstance(value, str | bytes) else value)):
                    raise _Problem(f"a {field.name} in it is not UTF-8")
            elif field.type == field.TYPE_MESSAGE:
                waiting += [value] if hasattr(value, "ListFields") else value


def _checked(folder: Path, model: ModelProto) -> OnnxGraph:
    _check_texts(model)
    graph = model.graph
    if not graph.node:
        raise _Problem("its graph is empty")
    if not FIRST_IR <= model.ir_version <= IR_VERSION:
        raise _Problem(f"its ir_version is {model.ir_version}, where {FIRST_IR} to {IR_VERSION} are known")
    _once((entry.key for entry in model.metadata_props), "key of its metadata")
    _once((tensor.name for tensor in graph.initializer), "initializer")
    for body in (graph, *model.functions):
        imports = (model if body is graph else body).opset_import
        domains = {_domain(entry.domain): entry.version for entry in imports}
        for node in _nodes(body.node):
            _check_node(node, domains)
    for function in model.functions:
        _check_values(function.node, set(function.input), function.output)
    _check_graph(graph, set())
    sizes: dict[str, int] = {}
    places = {}
    for tensor in _tensors(model):
        place = _check_tensor(tensor, folder, sizes)
        if place is not None:
            places[tensor.name] = place
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return OnnxGraph(folder, model, places, frozenset(sizes), metadata)


def _once(names: Iterable[str], what: str) -> None:
    seen = set[str]()
    for name in names:
        if not name or name in seen:
            raise _Problem(f"{what} {f'{shown(name)} is there twice' if name else 'without a name'}")
        seen.add(name)


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
    _once((value.name for value in graph.input), "input")
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {sparse.values.name for sparse in graph.sparse_initializer}
    _check_values(graph.node, made | own, [value.name for value in graph.output])


def _check_values(nodes: Iterable[NodeProto], made: set[str], results: Iterable[str]) -> None:
    """Each value is made once, and before it is read, so nothing goes in circles."""
    for node in nodes:
        for name in node.input:
            if name and name not in made:
                raise _Problem(f"node {shown(node.name)} reads {shown(name)}, which nothing before it makes")
        for graph in (graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs) if graph.ByteSize()):
            _check_graph(graph, made)
        for name in filter(None, node.output):
            if name in made:
                raise _Problem(f"node {shown(node.name)} makes {shown(name)}, which is there already")
            made.add(name)
    _once(results, "output")
    for name in results:
        if name not in made:
            raise _Problem(f"its output {shown(name)} is made by no node")


def _check_node(node: NodeProto, domains: Mapping[str, int]) -> None:
    domain, name = _domain(node.domain), shown(node.name)
    if domain not in domains:
        raise _Problem(f"node {name} is of the domain '{shown(domain)}', which the model does not import")
    held = {item.name: item for item in node.attribute}
    _once((item.name for item in node.attribute), f"in node {name} the attribute")
    if node.op_type in SIZES:
        for key in ("K", "N", "bits", "block_size", "group_size", "per_oc", "layout"):
            if key in held and held[key].type != AttributeProto.INT and not held[key].ref_attr_name:
                raise _Problem(f"node {name}: its {key} is no integer")
        if len(node.input) < 3:
            raise _Problem(f"node {name} of {node.op_type} has {len(node.input)} inputs, and needs codes and scales")
    if domain or node.op_type in ORTS_OWN:
        return
    try:
        schema = defs.get_schema(node.op_type, min(max(0, domains[domain]), LARGEST))
    except defs.SchemaError as error:
        raise _Problem(f"node {name}: ONNX has no operator '{shown(node.op_type)}' in opset {domains[domain]}") from error
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise _Problem(f"node {name} of {node.op_type} has {len(node.input)} inputs")
    for key, known in schema.attributes.items():
        item = held.get(key)
        if (item is None and known.required) or (
            item is not None and AttributeProto.AttributeType.Name(item.type) != _kind(known)
        ):
            told = "missing" if item is None else f"no {_kind(known)}"
            raise _Problem(f"node {name} of {node.op_type}: its attribute {key} is {told}")


def _kind(known: defs.OpSchema.Attribute) -> str:
    """Its type's name, as protobuf has it."""
    return str(known.type).rpartition(".")[2]


def _check_tensor(tensor: TensorProto, folder: Path, sizes: dict[str, int]) -> Place | None:
    """``sizes``: of the files that were looked at already."""
    name = shown(tensor.name)
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise _Problem(f"tensor {name} is of type {tensor.data_type}, which is none of ONNX's")
    if len(tensor.dims) > MOST_DIMS or any(not 0 <= length <= LARGEST for length in tensor.dims):
        raise _Problem(f"tensor {name} has the shape {shown(list(tensor.dims))}")
    size = -(-prod(tensor.dims) * WIDTHS.get(tensor.data_type, 8) // 8)
    external = tensor.data_location == TensorProto.EXTERNAL
    if tensor.data_type == TensorProto.STRING:
        if external or tensor.HasField("raw_data"):
            raise _Problem(f"tensor {name} of texts has bytes")
        return None
    if external:
        return _place(tensor, folder, size, sizes)
    held = len(tensor.raw_data)
    if tensor.HasField("raw_data") and held != size:
        raise _Problem(f"tensor {name} has {held:,} bytes, its shape {shown(list(tensor.dims))} needs {size:,}")
    if not tensor.HasField("raw_data") and size > 8 * tensor.ByteSize():  # numbers one by one take a byte or more each
        raise _Problem(f"tensor {name} has fewer numbers than its shape {shown(list(tensor.dims))} needs")
    return None


def _place(tensor: TensorProto, folder: Path, size: int, sizes: dict[str, int]) -> Place:
    name = shown(tensor.name)
    _once((entry.key for entry in tensor.external_data), f"in the external data of {name} the entry")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    for key in ("offset", "length"):
        if not _NUMBER.fullmatch(entries.get(key, "0")):
            raise _Problem(f"the external data of {name} has the {key} '{shown(entries[key])}', which is no number")
    location, offset = entries.get("location", ""), int(entries.get("offset", "0"))
    length = int(entries.get("length", size))
    if length != size:
        raise _Problem(f"tensor {name} has {length:,} bytes, its shape {shown(list(tensor.dims))} needs {size:,}")
    try:
        held = sizes[location] if location in sizes else inside(folder, location)
    except OSError as error:
        raise _Problem(f"the external data of {name}: {error}") from error
    if offset + length > held:
        raise _Problem(f"tensor {name} is at [{offset:,}, {offset + length:,}) of {shown(location)}, which has {held:,} bytes")
    sizes[location] = held
    return Place(location, offset, length)
