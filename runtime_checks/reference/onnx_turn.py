"""A node of RotateAdaDim by its specification (docs/reference/rotate-adadim.md), and weights that multiply what it gives.

::

    y = (left (kron) right) (signs * x) / sqrt(a b)        of each run of a b channels: V y = W x for

    W = V (left (kron) right) diag(signs) / sqrt(a b)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from runtime_checks.reference.decode import F32, Array
from runtime_checks.reference.graph import Graph

OP_TYPE = "RotateAdaDim"


@dataclass(frozen=True, eq=False)
class OnnxTurn:
    """``node``: the name of the one that turns. ``signs`` I8[IC], ``left`` I8[a, a], ``right`` I8[b, b]: 1 and -1."""

    node: str
    signs: Array
    left: Array
    right: Array

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


def turns(graph: Graph, value: str) -> bool:
    """Whether a node of RotateAdaDim makes ``value``."""
    return value in graph.producers and graph.producers[value].op_type == OP_TYPE


def turn_of(graph: Graph, value: str, channels: int) -> OnnxTurn:
    """What makes ``value`` of so many channels. Raises DamagedFileError."""
    node = graph.producers[value]
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


def _signs_of(graph: Graph, node: onnx.NodeProto, name: str) -> Array:
    values = graph.read(name)
    if values.dtype != np.int8 or not values.size or (np.abs(values.astype(np.int16)) != 1).any():
        raise graph.damaged(f"{name[:80]}, which {node.name[:80]} reads, is not of 1 and -1 alone")
    return values
