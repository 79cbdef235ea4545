"""Turned inputs: a node of RotateAdaDim by its specification (docs/reference/rotate-adadim.md), or operators of ONNX that
multiply blocks of channels; and weights that multiply what these give.

::

    y = (left (kron) right) (signs * x) / sqrt(a b)        of each run of a b channels: V y = W x for

    W = V (left (kron) right) diag(signs) / sqrt(a b)

    y = x reshaped to blocks, times first, reshaped to channels, taken in an order, reshaped to blocks, times second

    W: each row of V times the second transposed, put back in order, times the first transposed
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from runtime_checks.reference.decode import F32, Array
from runtime_checks.reference.graph import Graph

OP_TYPE = "RotateAdaDim"
TURNED = ".turned"  # ends the part of a node's name before its role
CHAIN = ("Reshape", "MatMul", "Reshape", "Gather", "Reshape", "MatMul", "Reshape")  # of blocks, from the last to the first


@dataclass(frozen=True, eq=False)
class OnnxTurn:
    """``node``: the name of the one that turns. ``signs`` I8[IC], ``left`` I8[a, a], ``right`` I8[b, b]: 1 and -1."""

    node: str
    signs: Array
    left: Array
    right: Array

    @property
    def channels(self) -> int:
        """Of an input."""
        return len(self.signs)

    def apply(self, x: F32) -> F32:
        """What the node gives for F32[tokens, IC]."""
        left, right, signs = (values.astype(np.float32) for values in (self.left, self.right, self.signs))
        runs = (x * signs).reshape(len(x), -1, len(left), len(right))
        turned = np.einsum("orij,mi,nj->ormn", runs, left, right, optimize=True).reshape(x.shape)
        y: F32 = turned / np.float32(math.sqrt(left.size**0.5 * right.size**0.5))
        return y

    def back(self, weight: F32) -> F32:
        """W F32[OC, IC] of V F32[OC, IC]."""
        left, right, signs = (values.astype(np.float32) for values in (self.left, self.right, self.signs))
        runs = weight.reshape(len(weight), -1, len(left), len(right))
        turned = np.einsum("ormn,mi,nj->orij", runs, left, right, optimize=True).reshape(weight.shape)
        back: F32 = turned * signs / np.float32(math.sqrt(left.size**0.5 * right.size**0.5))
        return back


@dataclass(frozen=True, eq=False)
class OnnxBlockTurn:
    """``node``: the name of the last one that turns. ``first``, ``second`` F32[n, n], by which rows are multiplied; ``order``
    intp[IC]: the channel that comes to each place between them."""

    node: str
    first: F32
    second: F32
    order: Array

    @property
    def channels(self) -> int:
        """Of an input."""
        return len(self.order)

    def apply(self, x: F32) -> F32:
        """What the nodes give for F32[tokens, IC]."""
        size = len(self.first)
        between: F32 = (x.reshape(-1, size) @ self.first).reshape(x.shape)[:, self.order]
        y: F32 = (between.reshape(-1, size) @ self.second).reshape(x.shape)
        return y

    def back(self, weight: F32) -> F32:
        """W F32[OC, IC] of V F32[OC, IC]."""
        between, size = np.empty_like(weight), len(self.first)
        between[:, self.order] = (weight.reshape(-1, size) @ self.second.T).reshape(weight.shape)
        back: F32 = (between.reshape(-1, size) @ self.first.T).reshape(weight.shape)
        return back


Turn = OnnxTurn | OnnxBlockTurn


def turns(graph: Graph, value: str) -> bool:
    """Whether nodes that turn make ``value``."""
    node = graph.producers.get(value)
    return node is not None and (node.op_type == OP_TYPE or _stem(node).endswith(TURNED))


def before_turn(graph: Graph, value: str) -> str:
    """What is turned. Raises DamagedFileError."""
    node = graph.producers[value]
    if node.op_type == OP_TYPE and node.input:
        return str(node.input[0])
    *_, blocks = _chain(graph, value)
    return _uncast(graph, blocks.input[0])


def turn_of(graph: Graph, value: str, channels: int) -> Turn:
    """What makes ``value`` of so many channels. Raises DamagedFileError."""
    node = graph.producers[value]
    if node.op_type != OP_TYPE:
        return _block_turn(graph, value, channels)
    if len(node.input) != 4 or len(node.output) != 1:
        raise graph.damaged(f"{node.name[:80]} has {len(node.input)} inputs and {len(node.output)} outputs")
    signs, left, right = (_signs_of(graph, node, name) for name in node.input[1:])
    if signs.shape != (channels,) or channels % (len(left) * len(right)):
        told = f"{list(signs.shape)} signs and factors of {len(left)} and {len(right)}"
        raise graph.damaged(f"{node.name[:80]} has {told} for {channels} channels")
    for factor in (left, right):
        if factor.shape != (len(factor), len(factor)):
            raise graph.damaged(f"{node.name[:80]} has a factor of shape {list(factor.shape)}, which is no square")
    return OnnxTurn(node.name, signs, left, right)


def _block_turn(graph: Graph, value: str, channels: int) -> OnnxBlockTurn:
    _, by_second, _, gather, _, by_first, _ = _chain(graph, value)
    size, name = (graph.resolve(by_first.input[1]).dims or [0])[0], graph.producers[value].name
    if not 0 < size <= channels or channels % size:
        raise graph.damaged(f"{name[:80]} turns {channels} channels in blocks of {size}")
    first, second = (graph.fitted(node.input[1], (size, size), "f").astype(np.float32) for node in (by_first, by_second))
    order = graph.fitted(gather.input[1], (channels,), "i")
    if not np.array_equal(np.sort(order), np.arange(channels)):
        raise graph.damaged(f"{gather.name[:80]} does not take each of {channels} channels once")
    return OnnxBlockTurn(name, first, second, order.astype(np.intp))


def _chain(graph: Graph, value: str) -> list[onnx.NodeProto]:
    """The nodes that turn blocks, from the last to the first. Raises DamagedFileError where others stand between."""
    found, last = list[onnx.NodeProto](), graph.producers[value].name
    for op in CHAIN:
        node = graph.producers.get(_uncast(graph, value))
        if node is None or node.op_type != op or len(node.input) != 2:
            raise graph.damaged(f"{last[:80]} turns an input, but not by {', '.join(reversed(CHAIN))}")
        found.append(node)
        value = node.input[0]
    return found


def _uncast(graph: Graph, value: str) -> str:
    """What a Cast of the nodes that turn reads, or the value itself."""
    node = graph.producers.get(value)
    ours = node is not None and node.op_type == "Cast" and node.input and _stem(node).endswith(TURNED)
    return str(node.input[0]) if node is not None and ours else value


def _stem(node: onnx.NodeProto) -> str:
    return str(node.name.rpartition("/")[0])


def _signs_of(graph: Graph, node: onnx.NodeProto, name: str) -> Array:
    values = graph.read(name)
    if values.dtype != np.int8 or not values.size or (np.abs(values.astype(np.int16)) != 1).any():
        raise graph.damaged(f"{name[:80]}, which {node.name[:80]} reads, is not of 1 and -1 alone")
    return values
