"""A float graph of any tool, spelled as a template's: which of its initializers are weights, what they are called, and the same
nodes reading them. No model is known by name; a decoder block is the first number in a weight's own name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from quantize.blocks import matrix
from quantize.checkpoint.floats import from_f32, to_f32
from quantize.model_config import EMBEDDING, HEAD, block_index, block_prefix
from quantize.onnx.moe import experts_of
from quantize.onnx.reader import OnnxGraph
from quantize.onnx.template import FloatWeight, is_weight
from quantize.types import F32

ENDING = re.compile(r"(\.MatMul)?(\.weight)?(_t)?$")  # of a matrix' name
NUMBER = re.compile(r"(?:^|.*?[./])(\d+)[./](.+)$")
IDS = "input_ids"
CONTRIB = "com.microsoft"  # whose functions are bodies for runtimes that have not the operators


@dataclass(frozen=True)
class Normal:
    """``skeleton``: see ``quantize.onnx.template``. ``weights``: embedding first, blocks in turn, head last."""

    skeleton: ModelProto
    weights: Mapping[str, FloatWeight]


@dataclass(frozen=True)
class _Matrix:
    """What ``node`` multiplies by or looks up in: an ``initializer``, which lies as [IC, OC] if ``by_columns``."""

    node: int
    initializer: str
    by_columns: bool


def normal(read: OnnxGraph, sizes: Mapping[str, int], layers: int) -> Normal:
    """``sizes``: of dimensions of inputs and outputs that have a name and are no one's choice. ``layers``: decoder blocks.

    Raises ValueError for a graph without an embedding and a head, or in which two weights would have one name.
    """
    found = _Found(read)
    names = {found.embedding.node: EMBEDDING, found.head.node: EMBEDDING if found.tied else HEAD}
    names |= {one.node: _in_block(ENDING.sub("", one.initializer), layers) + ".weight" for one in found.products}
    others = (name for name, tensor in read.initializers.items() if is_weight(tensor) and name not in found.matrices)
    plain = {name: _in_block(name, layers) for name in others}
    inner = [names[one.node] for one in found.products]
    twice = [name for name, count in Counter((EMBEDDING, HEAD, *inner, *plain.values())).items() if count > 1]
    if twice:
        raise ValueError(f"two of its weights would be called {twice[0]}")
    nodes = _needed(_spelled(read.model.graph.node, found, names, plain), [value.name for value in read.model.graph.output])
    used = {name for node in nodes for name in node.input}
    weights = {names[one.node]: _narrowed(found.values(one)) for one in found.all}
    stacks = {name for node in read.model.graph.node if (experts := experts_of(node)) is not None for name in experts.stacks}
    weights |= {new: _narrowed(read.mapped(name)) if name in stacks else _weight(read, name) for name, new in plain.items()}
    rest = used - set(plain) - found.matrices
    constants = [numpy_helper.from_array(read.mapped(name), name) for name in read.initializers if name in rest]
    skeleton = _skeleton(read.model, nodes, constants, sizes)
    return Normal(skeleton, {name: weights[name] for name in sorted(weights, key=_place) if name in used})


class _Found:
    """The matrices of a graph. Raises ValueError without an embedding and a head."""

    def __init__(self, read: OnnxGraph) -> None:
        self._read, graph = read, read.model.graph
        two = {
            name for name, tensor in read.initializers.items() if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
        }
        turned = {node.output[0]: node.input[0] for node in graph.node if _turns(node) and node.input[0] in two}
        readers = Counter(turned.get(name, name) for node in graph.node for name in node.input if node.output[0] not in turned)
        products, tables = list[_Matrix](), list[_Matrix]()
        for index, node in enumerate(graph.node):
            if node.op_type == "MatMul" and (one := _matrix(index, node.input[1], two, turned, at_first=True)):
                products.append(one)
            elif node.op_type == "Gather" and node.input[1] == IDS and (one := _matrix(index, node.input[0], two, turned)):
                tables.append(one)
        if len(tables) != 1:
            raise ValueError(f"{len(tables)} of its weights are looked up by the tokens, where one should be")
        self.embedding = tables[0]
        rows = self.values(tables[0]).shape[0]
        heads = [one for one in products if self.values(one).shape[0] == rows]
        if not heads:
            raise ValueError(f"none of its weights gives a number for each of {rows} tokens")
        self.head = heads[-1]
        self.products = [one for one in products if one is not self.head and readers[one.initializer] == 1]
        self.tied = self._same()

    @property
    def all(self) -> list[_Matrix]:
        """Each once by its name."""
        return [self.embedding, *self.products, self.head]

    @property
    def matrices(self) -> set[str]:
        """Names of their initializers."""
        return {one.initializer for one in self.all}

    def values(self, one: _Matrix) -> F32:
        """[OC, IC] or [tokens, hidden], a map."""
        values = self._read.mapped(one.initializer)
        return values.T if one.by_columns else values

    def _same(self) -> bool:
        table, head = self.values(self.embedding), self.values(self.head)
        step = 1 << 12
        return table.shape == head.shape and all(
            np.array_equal(table[start : start + step], head[start : start + step]) for start in range(0, len(table), step)
        )


def _turns(node: NodeProto) -> bool:
    return node.op_type == "Transpose" and [list(item.ints) for item in node.attribute if item.name == "perm"] in ([], [[1, 0]])


def _matrix(index: int, name: str, two: set[str], turned: Mapping[str, str], at_first: bool = False) -> _Matrix | None:
    """``at_first``: as an initializer it is [IC, OC], behind a Transpose [OC, IC]."""
    if name in two:
        return _Matrix(index, name, at_first)
    return _Matrix(index, turned[name], not at_first) if name in turned else None


def _spelled(
    nodes: Sequence[NodeProto], found: _Found, names: Mapping[int, str], plain: Mapping[str, str]
) -> Iterable[NodeProto]:
    for index, node in enumerate(nodes):
        own = names.get(index)
        stem = "lm_head" if index == found.head.node else (own or "").removesuffix(".weight")
        if index == found.embedding.node:
            yield helper.make_node("Gather", [EMBEDDING, IDS], node.output, name=f"{stem}/Gather", axis=0)
        elif own is not None:
            yield helper.make_node("Transpose", [own], [f"{stem}.transposed"], name=f"{stem}/Transpose", perm=[1, 0])
            yield helper.make_node("MatMul", [node.input[0], f"{stem}.transposed"], node.output, name=f"{stem}/MatMul")
        else:
            other = NodeProto()
            other.CopyFrom(node)
            del other.metadata_props[:]
            other.input[:] = [plain.get(name, name) for name in node.input]
            yield other


def _needed(nodes: Iterable[NodeProto], results: Iterable[str]) -> list[NodeProto]:
    """Those that an output is made from, in their order."""
    wanted, kept = set(results), list[NodeProto]()
    for node in reversed(list(nodes)):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _skeleton(model: ModelProto, nodes: list[NodeProto], constants: list[TensorProto], sizes: Mapping[str, int]) -> ModelProto:
    out = ModelProto()
    out.CopyFrom(model)
    graph, functions = out.graph, [function for function in out.functions if function.domain != CONTRIB]
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    del graph.node[:], graph.initializer[:], graph.value_info[:], out.functions[:], out.metadata_props[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    out.functions.extend(functions)
    return out


def _in_block(name: str, layers: int) -> str:
    """``transformer.h.3.attn.q.weight`` as our names have it, which tell a block by their beginning; some tools count what comes
    after the last block as one more."""
    found = NUMBER.match(name)
    if found is None:
        return name
    inner, index = found[2].replace("/", "."), int(found[1])
    return f"{block_prefix(index)}{inner}" if index < layers else f"model.{inner}"


def _place(name: str) -> tuple[int, int]:
    index = block_index(name)
    return (0 if name == EMBEDDING else 1 if index is not None else 3 if name == HEAD else 2), index or 0


def _weight(read: OnnxGraph, name: str) -> FloatWeight:
    return FloatWeight(tuple(read.initializers[name].dims), "F32", lambda: read.mapped(name))


def _narrowed(values: F32) -> FloatWeight:
    """As BF16, or F16, if that holds all of them."""
    rows = values.reshape(matrix(values.shape)) if values.ndim > 2 else values  # a view either way
    parts = [rows[start : start + 1024] for start in range(0, len(rows), 1024)]
    with np.errstate(over="ignore"):
        for dtype in ("BF16", "F16"):
            if all(np.array_equal(to_f32(from_f32(part, dtype), dtype), part) for part in parts):
                return FloatWeight(values.shape, dtype, partial(from_f32, values, dtype))
    return FloatWeight(values.shape, "F32", lambda: values)
