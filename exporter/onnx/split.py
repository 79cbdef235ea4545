"""PER_IC linears in stock onnxruntime: exact, one MatMulNBits per group of output channels.

For output group j with scale s and zero point z per input channel, and mid = 2**(bits-1)::

    y_n = sum_k x_k s_kj (q_kn - z_kj) = sum_k (x_k s_kj) (q_kn - mid)  +  sum_k x_k s_kj (mid - z_kj)
                                         MatMulNBits, unit scales          one small MatMul for all groups

The file holds s [G, 1, 1, IC] and the zero points as integers of the same shape; onnxruntime folds s * (mid - z) at load.
x * s is made for as many groups at a time as keep a prompt's intermediate values small, then split.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from exporter.onnx.matmul_nbits import CONTRIB
from exporter.onnx.tensors import (
    Form,
    Planned,
    Span,
    Wire,
    node,
    pack_bits,
    pad_last,
    planned_scale,
    site,
    wide_scale,
)
from exporter.onnx_cost import SPLIT_K_BLOCK, groups_per_mul, stored_bits
from quantize.store.record import TensorRecord
from quantize.types import Array, QuantizedTensor


def split_form(record: TensorRecord, wire: Wire, accuracy_level: int) -> Form:
    """A PER_IC tensor as the nodes above; in float32 within a graph of float16, which x * s would be lost in."""
    prefix = site(record.name)
    inner = wire if wire.kind == TensorProto.FLOAT else Wire(f"{prefix}.wide_x", f"{prefix}.wide_y")
    split = _Split(record, inner, accuracy_level)
    nodes = split.nodes()
    if inner is not wire:
        nodes.insert(0, node("Cast", [wire.x], [inner.x], f"{prefix}/Cast x", to=inner.kind))
        nodes.append(node("Cast", [inner.y], [wire.y], f"{prefix}/Cast y", to=wire.kind))
    return Form("split", nodes, split.planned(), split.pieces, split.constants)


class _Split:
    def __init__(self, record: TensorRecord, wire: Wire, accuracy_level: int) -> None:
        grid = record.grid
        assert grid is not None
        self.record, self.wire, self.accuracy_level = record, wire, accuracy_level
        self.name, self.prefix = record.name, site(record.name)
        self.oc, self.ic = record.shape
        self.bits, self.middle, self.zeros = stored_bits(grid.bits), 2 ** (grid.bits - 1), not grid.symmetric
        self.size = min(grid.group_size, self.oc)
        self.widths = [min(self.size, self.oc - start) for start in range(0, self.oc, self.size)]
        self.groups, self.blocks = len(self.widths), -(-self.ic // SPLIT_K_BLOCK)
        self.zero_type = TensorProto.UINT8 if grid.bits == 8 else TensorProto.UINT4
        self.scale = planned_scale(record, (self.groups, 1, 1, self.ic))
        self.wide, self.widening = wide_scale(self.scale)
        self.constants: dict[str, Array] = {}

    def planned(self) -> tuple[Planned, ...]:
        codes = [
            Planned(self._codes(j), TensorProto.UINT8, (width, self.blocks, SPLIT_K_BLOCK * self.bits // 8))
            for j, width in enumerate(self.widths)
        ]
        zeros = [Planned(f"{self.name}.zero_point", self.zero_type, self.scale.shape)] if self.zeros else []
        return (self.scale, *zeros, *codes)

    def pieces(self, first: int, chunk: QuantizedTensor) -> Iterator[Span]:
        """All bytes: a linear is never larger than a decoder block, so it comes in one chunk (rows are input channels)."""
        assert first == 0 and chunk.codes.shape[0] == self.ic, self.name
        zero = chunk.params["zero_point"]
        yield self.scale.name, 0, np.ascontiguousarray(chunk.params["scale"].T).tobytes()
        if self.zeros:
            yield f"{self.name}.zero_point", 0, pack_bits(zero.T.reshape(1, -1), 8 if self.bits == 8 else 4).tobytes()
        for j, width in enumerate(self.widths):
            rows = np.ascontiguousarray(chunk.codes[:, j * self.size : j * self.size + width].T)
            yield self._codes(j), 0, pack_bits(pad_last(rows, SPLIT_K_BLOCK), self.bits).tobytes()

    def nodes(self) -> list[NodeProto]:
        scaled, nodes = self._scale_activations()
        parts = []
        for j, width in enumerate(self.widths):
            parts.append(f"{self.prefix}.y_{j:05d}")
            nodes.append(self._matmul(j, width, scaled[j], parts[j]))
        joined = self._value("joined") if self.zeros else self.wire.y
        nodes += [
            self._node("Concat", parts, self._value("stacked"), axis=-1),
            self._node("Squeeze", [self._value("stacked"), self._constant("axis_0", [0])], joined),
        ]
        return self.widening + nodes + (self._add_zero_points(joined) if self.zeros else [])

    def _scale_activations(self) -> tuple[list[str], list[NodeProto]]:
        """x * s for every group, [1, batch, tokens, IC] each: their names, and the nodes that make them."""
        step = groups_per_mul(self.groups, self.ic)
        starts = range(0, self.groups, step)
        scales = [self.wide]
        nodes = []
        if len(starts) > 1:
            scales = [f"{self.name}.scale.part_{i:05d}" for i in range(len(starts))]
            sizes = self._constant(f"parts_{self.groups}_{step}", [min(step, self.groups - start) for start in starts])
            nodes.append(node("Split", [self.wide, sizes], scales, f"{self.prefix}/Split scales", axis=0))
        scaled = [f"{self.prefix}.x_{j:05d}" for j in range(self.groups)]
        for i, start in enumerate(starts):
            mine = scaled[start : start + step]
            product = mine[0] if len(mine) == 1 else f"{self.prefix}.scaled_{i:05d}"
            nodes.append(self._node("Mul", [self.wire.x, scales[i]], product, f"Mul_{i:05d}"))
            if len(mine) > 1:
                split = node("Split", [product], mine, f"{self.prefix}/Split_{i:05d}", axis=0, num_outputs=len(mine))
                nodes.append(split)
        return scaled, nodes

    def _matmul(self, j: int, width: int, x: str, y: str) -> NodeProto:
        unit = f"adadim.unit_scale_{width}x{self.blocks}"
        self.constants[unit] = np.ones((width, self.blocks), np.float32)
        inputs = [x, self._codes(j), unit]
        if self.middle != 2 ** (self.bits - 1):
            middle = pack_bits(np.full((width, self.blocks), self.middle, np.uint8), self.bits)
            inputs.append(f"adadim.zero_point_{self.middle}_{width}x{self.blocks}")
            self.constants[inputs[-1]] = middle
        sizes = {"K": self.ic, "N": width, "bits": self.bits, "block_size": SPLIT_K_BLOCK, "accuracy_level": self.accuracy_level}
        name = f"{self.prefix}/MatMulNBits_{j:05d}"
        return node("MatMulNBits", inputs, [y], name, domain=CONTRIB, **sizes)

    def _add_zero_points(self, joined: str) -> list[NodeProto]:
        """The second sum: activations times s * (mid - z), one value per group, added to each of the group's outputs."""
        zero, centred, c4, c2, c, shift = (self._value(key) for key in ("zero", "centred", "c4", "c2", "c", "shift"))
        middle = f"adadim.middle_{self.middle}"
        self.constants[middle] = np.array(self.middle, np.float32)
        shape = self._constant(f"matrix_{self.groups}x{self.ic}", [self.groups, self.ic])
        add = self._add_ragged if self.oc % self.size else self._add_even
        return [
            self._node("Cast", [f"{self.name}.zero_point"], zero, to=TensorProto.FLOAT),
            self._node("Sub", [middle, zero], centred),
            self._node("Mul", [centred, self.wide], c4, "Mul zero"),
            self._node("Reshape", [c4, shape], c2, "Reshape zero"),
            self._node("Transpose", [c2], c, perm=[1, 0]),
            self._node("MatMul", [self.wire.x, c], shift),
            *add(joined, shift),
        ]

    def _add_even(self, joined: str, shift: str) -> list[NodeProto]:
        """[.., OC] + [.., G] by way of [.., G, g] + [.., G, 1]."""
        grouped, column, total = (self._value(key) for key in ("grouped", "column", "total"))
        by_group = self._constant(f"groups_{self.groups}x{self.size}", [0, 0, self.groups, self.size])
        return [
            self._node("Reshape", [joined, by_group], grouped, "Reshape groups"),
            self._node("Unsqueeze", [shift, self._constant("axis_last", [-1])], column),
            self._node("Add", [grouped, column], total),
            self._node("Reshape", [total, self._constant(f"columns_{self.oc}", [0, 0, self.oc])], self.wire.y),
        ]

    def _add_ragged(self, joined: str, shift: str) -> list[NodeProto]:
        """The last group is shorter: every output channel looks its group up (slower for prompts than the even form)."""
        index = self._constant(f"group_of_{self.oc}_{self.size}", [n // self.size for n in range(self.oc)])
        return [
            self._node("Gather", [shift, index], self._value("column"), axis=-1),
            self._node("Add", [joined, self._value("column")], self.wire.y),
        ]

    def _codes(self, j: int) -> str:
        return f"{self.name}.codes_{j:05d}"

    def _value(self, key: str) -> str:
        return f"{self.prefix}.{key}"

    def _constant(self, key: str, values: list[int]) -> str:
        self.constants[f"adadim.{key}"] = np.array(values, np.int64)
        return f"adadim.{key}"

    def _node(self, op: str, inputs: list[str], output: str, role: str = "", **attributes: int | list[int]) -> NodeProto:
        return node(op, inputs, [output], f"{self.prefix}/{role or op}", "", **attributes)
