"""A weight of several parts in an ONNX folder: the first reads all input channels, those beside it take some with a Gather.

::

    NAME.weight           as any weight
    NAME.part1.weight     beside it; NAME.part1/Gather says which input channels its columns are

The names are spelled here again: the reference imports nothing of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from runtime_checks.reference.decode import F32, Array
from runtime_checks.reference.graph import Graph
from runtime_checks.reference.onnx_tensor import ALL, OnnxTensor

PART = re.compile(r"(.+)\.part[1-9]\d{0,2}\.weight")


@dataclass(frozen=True, eq=False)
class OnnxWeight:
    """``first`` reads all input channels; the parts beside it, which read some, are added to it."""

    first: OnnxTensor
    beside: tuple[OnnxTensor, ...]

    def whole(self, values: F32, rows: slice = ALL) -> F32:
        """F32[OC, IC] of the first part, or some output channels of it, turned back, and the others added.

        Raises DamagedFileError.
        """
        first = self.first.turned_back(values)
        total = first.copy() if self.beside else first
        for part in self.beside:
            total[:, part.channels(total.shape[1])] += part.decode(rows)
        return total


def whole_weights(tensors: Mapping[str, OnnxTensor]) -> dict[str, OnnxWeight]:
    """By name, each with all its parts."""
    beside: dict[str, list[OnnxTensor]] = {}
    for name, tensor in tensors.items():
        if tensor.read_channels is not None:
            beside.setdefault(weight_name(name), []).append(tensor)
    return {
        name: OnnxWeight(tensor, tuple(beside.get(name, ()))) for name, tensor in tensors.items() if tensor.read_channels is None
    }


def weight_name(part: str) -> str:
    """The weight that NAME.part1.weight is a part of; of another its own name."""
    found = PART.fullmatch(part)
    return part if found is None else f"{found[1]}.weight"


def check_part(graph: Graph, part: OnnxTensor, weight: OnnxTensor | None) -> None:
    """Only a linear has parts beside it, with as many output channels."""
    shape = None if weight is None or PART.fullmatch(weight.name) or weight.form == "gather" else weight.shape
    if shape is None or len(shape) != 2 or len(part.shape) != 2 or part.shape[0] != shape[0] or not 0 < part.shape[1] <= shape[1]:
        raise graph.damaged(f"{part.name[:80]} of shape {list(part.shape)[:5]} is no part of a weight of shape {shape}")


def channels_of(graph: Graph, stem: str) -> Array:
    """What the Gather before a part takes."""
    gathers = graph.named[f"{stem}/Gather"]
    if len(gathers) != 1 or len(gathers[0].input) != 2:
        raise graph.damaged(f"{stem[:80]} is a part, and no node takes the input channels that it reads")
    channels = graph.read(gathers[0].input[1])
    if channels.dtype.kind not in "iu":
        raise graph.damaged(f"{stem[:80]} reads input channels that are no whole numbers")
    return channels
