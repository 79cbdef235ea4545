"""PER_OC linears and heads as one ``com.microsoft::MatMulNBits``, embeddings as ``GatherBlockQuantized``.

Both read codes U8[OC, blocks, bytes of a block], so a tied head shares the embedding's initializer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import NodeProto, TensorProto

from exporter.onnx.tensors import (
    Form,
    Planned,
    Span,
    Wire,
    as_type,
    node,
    pack_bits,
    pad_last,
    planned_scale,
    repeat_groups,
    site,
    wide_scale,
)
from exporter.onnx_cost import block_size, packed_size, stored_bits
from quantize.activations import BLOCK
from quantize.blocks import matrix
from quantize.model_config import HEAD
from quantize.store.record import TensorRecord
from quantize.types import FINE_BITS, Array, QuantizedTensor

CONTRIB = "com.microsoft"


class Layout:
    """Sizes of one tensor's initializers: OC rows of ``blocks`` blocks of ``size`` codes of ``bits`` bits."""

    def __init__(self, record: TensorRecord, kind: int = TensorProto.FLOAT, sizes: tuple[int, int] | None = None) -> None:
        """``kind``: of what operators want as scales. ``sizes``: bits and block size, if they are not the tensor's own choice."""
        grid = record.grid
        assert grid is not None
        self.record, self.kind = record, kind
        self.oc, self.ic = matrix(record.shape)
        self.bits, self.size = sizes or (stored_bits(grid.bits), block_size(grid, self.ic))
        self.blocks = -(-self.ic // self.size)
        self.block_bytes = self.size * self.bits // 8
        # Without zero points the operators take 2**(bits-1), which is not the middle of fewer bits that ride in more.
        self.zeros = not grid.symmetric or self.bits != grid.bits

    def codes(self) -> Planned:
        """U8, packed."""
        return Planned(f"{self.record.name}.codes", TensorProto.UINT8, (self.oc, self.blocks, self.block_bytes))

    def scale(self) -> Planned:
        """In the grid's type, or in float16 for operators that take no other."""
        return planned_scale(self.record, (self.oc, self.blocks), self.kind)

    def widening(self) -> list[NodeProto]:
        """The nodes that make the scales what operators want: one form of a tensor has them, another may read their value."""
        return wide_scale(self.scale(), self.kind)[1]

    def zero_point(self, name: str, bits: int) -> tuple[Planned, ...]:
        """U8, packed in so many bits; none where the operators' own is meant."""
        shape = (self.oc, packed_size(self.blocks, bits))
        return (Planned(f"{name}.zero_point", TensorProto.UINT8, shape),) if self.zeros else ()

    def pieces(self, first: int, chunk: QuantizedTensor, zero_widths: Mapping[str, int]) -> Iterator[Span]:
        """Bytes of the rows from ``first`` on; ``zero_widths``: initializers of zero points and the bits each packs them in."""
        name = self.record.name
        codes = pack_bits(pad_last(chunk.codes, self.size), self.bits)
        stored = as_type(chunk.params["scale"], self.scale().data_type)
        scale = repeat_groups(stored, self.record, self.size, self.blocks)
        yield f"{name}.codes", first * self.blocks * self.block_bytes, codes.tobytes()
        yield f"{name}.scale", first * self.blocks * scale.itemsize, scale.tobytes()
        yield from self.zero_pieces(first, chunk, zero_widths)

    def zero_pieces(self, first: int, chunk: QuantizedTensor, zero_widths: Mapping[str, int]) -> Iterator[Span]:
        """The zero points' part of ``pieces``."""
        repeated = repeat_groups(chunk.params["zero_point"], self.record, self.size, self.blocks)
        for initializer, bits in zero_widths.items():
            yield initializer, first * packed_size(self.blocks, bits), pack_bits(repeated, bits).tobytes()

    def matmul(self, name: str, wire: Wire, zeros: tuple[Planned, ...], accuracy_level: int) -> NodeProto:
        """Of the weight ``name``, that is this one or one that reads its codes too."""
        inputs = [wire.x, self.codes().name, wide_scale(self.scale(), self.kind)[0], *(zero.name for zero in zeros)]
        sizes = {"K": self.ic, "N": self.oc, "bits": self.bits, "block_size": self.size, "accuracy_level": accuracy_level}
        return node("MatMulNBits", inputs, [wire.y], f"{site(name)}/MatMulNBits", domain=CONTRIB, **sizes)


def matmul_nbits(record: TensorRecord, wire: Wire, accuracy_level: int) -> Form:
    """A PER_OC tensor as one node; where the record says that blocks of the input are rounded, its blocks are these."""
    layout = Layout(record, wire.kind, None if record.activation is None else (FINE_BITS, BLOCK))
    zeros = layout.zero_point(record.name, layout.bits)
    matmul = layout.matmul(record.name, wire, zeros, accuracy_level)
    widths = {zero.name: layout.bits for zero in zeros}
    planned = (layout.codes(), layout.scale(), *zeros)
    return Form("matmulnbits", [*layout.widening(), matmul], planned, lambda first, chunk: layout.pieces(first, chunk, widths))


def embedding(record: TensorRecord, wire: Wire) -> Form:
    """An embedding as GatherBlockQuantized, gathered along the first and quantized along the last of three dimensions.

    So every block has its own zero point, one a byte.
    """
    layout = Layout(record, wire.kind)
    zeros = layout.zero_point(record.name, 8)
    nodes, constants = _gather_nodes(layout, wire, zeros)
    widths = {zero.name: 8 for zero in zeros}
    planned = (layout.codes(), layout.scale(), *zeros)
    return Form("gather", nodes, planned, lambda first, chunk: layout.pieces(first, chunk, widths), constants)


def tied_head(record: TensorRecord, wire: Wire, accuracy_level: int) -> Form:
    """A head that is the embedding: MatMulNBits on ``embedding``'s initializers; below 8 bits it packs its own zero points."""
    layout = Layout(record, wire.kind)
    zeros = layout.zero_point(record.name if layout.bits == 8 else HEAD, layout.bits)
    matmul = layout.matmul(HEAD, wire, zeros, accuracy_level)
    widths = {} if layout.bits == 8 else {zero.name: layout.bits for zero in zeros}
    planned = tuple(zero for zero in zeros if zero.name in widths)
    return Form("matmulnbits", [matmul], planned, lambda first, chunk: layout.zero_pieces(first, chunk, widths))


def _gather_nodes(layout: Layout, wire: Wire, zeros: tuple[Planned, ...]) -> tuple[list[NodeProto], dict[str, Array]]:
    prefix, columns = site(layout.record.name), layout.blocks * layout.size
    constants = {"adadim.axis_2": np.array([2], np.int64), f"adadim.columns_{columns}": np.array([0, 0, columns], np.int64)}
    scale, widening = wide_scale(layout.scale(), layout.kind)
    params = [scale, *(zero.name for zero in zeros)]
    blockwise = [f"{name}.blockwise" for name in params]
    nodes = [
        node("Unsqueeze", [name, "adadim.axis_2"], [column], f"{prefix}/Unsqueeze_{index:05d}")
        for index, (name, column) in enumerate(zip(params, blockwise, strict=True))
    ]
    inputs = [layout.codes().name, wire.x, *blockwise]
    sizes = {"bits": layout.bits, "block_size": layout.size, "gather_axis": 0, "quantize_axis": 2}
    last, cut = f"{prefix}.blocks", columns != layout.ic
    flat = f"{prefix}.padded" if cut else wire.y
    nodes += [
        node("GatherBlockQuantized", inputs, [last], f"{prefix}/GatherBlockQuantized", domain=CONTRIB, **sizes),
        node("Reshape", [last, f"adadim.columns_{columns}"], [flat], f"{prefix}/Reshape"),
    ]
    if cut:
        constants |= {"adadim.axis_0": np.array([0], np.int64), f"adadim.end_{layout.ic}": np.array([layout.ic], np.int64)}
        ends = [flat, "adadim.axis_0", f"adadim.end_{layout.ic}", "adadim.axis_2"]
        nodes.append(node("Slice", ends, [wire.y], f"{prefix}/Slice"))
    return widening + nodes, constants
