"""The weights of an exported ONNX folder, read from its bytes.

What holds a weight is told by nodes, which are named ``<weight's name without .weight>/<role>``::

    MatMulNBits           B U8[N, ceil(K / block), block * bits / 8], scales [N, ceil(K / block)],
                          zero points packed U8[N, ceil(n_blocks * bits / 8)], or absent: 2**(bits - 1)
    GatherBlockQuantized  the same codes and scales; zero points U8[rows, n_blocks], one in a byte
    MatMulAdaDim          docs/matmul-adadim.md
    MatMulNBits_00000 ..  the split form: a node with unit scales for each group of output channels, joined by Concat; scale
                          [groups, 1, 1, K] multiplies its input; zero_point U4 or U8 of the same shape

Scales are F32, or F16 behind a Cast to F32 (MatMulAdaDim takes them as they are). Packed values lie low bits first; only
MatMulAdaDim's 3-bit ones cross bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from runtime_checks.reference import F32, U8, Array, DamagedFileError, decode_affine, decode_floats, unpack
from runtime_checks.reference_graph import FLOATS, Graph
from runtime_checks.reference_tiles import tile_codes, tile_scales, tile_zero_points

CODES_INPUT = {"GatherBlockQuantized": 0, "MatMulNBits": 1, "MatMulAdaDim": 1}
ALL = slice(None)


@dataclass(frozen=True, eq=False)
class OnnxCodes:
    """codes U8[rows, cols]; scale F32 and zero_point U8 [rows, n_groups]; rows are OC if ``per_oc``, else IC."""

    codes: U8
    scale: F32
    zero_point: U8
    group_size: int
    per_oc: bool

    def decode(self, oc: slice = ALL, ic: slice = ALL) -> F32:
        """F32[OC, IC], (q - z) * s, or a window of it."""
        rows, cols = (oc, ic) if self.per_oc else (ic, oc)
        group = np.arange(self.codes.shape[1])[cols] // self.group_size
        window = decode_affine(self.codes[rows, cols], self.scale[rows], self.zero_point[rows], group)
        return window if self.per_oc else window.T


@dataclass(frozen=True, eq=False)
class OnnxTensor:
    """One weight under its Hugging Face name. ``form``: a key of READERS, or "float"; ``shape`` (OC, IC) or (n,)."""

    name: str
    form: str
    dtype: str  # "F32", "F16", "BF16" of a float tensor, else "U8"
    shape: tuple[int, ...]
    read_codes: Callable[[slice], OnnxCodes] | None = None
    read_floats: Callable[[], Array] | None = None

    def codes(self, rows: slice = ALL) -> OnnxCodes:
        """The stored integers of a quantized tensor, or some stored rows of them. Raises DamagedFileError."""
        assert self.read_codes is not None, f"{self.name} is stored as floats"
        try:
            return self.read_codes(rows)
        except (KeyError, IndexError, ValueError) as error:
            raise DamagedFileError(f"{self.name}: its {self.form} nodes are not as they should be ({error})") from error

    def values(self) -> Array:
        """The stored floats of a float tensor (BF16 as uint16 bits)."""
        assert self.read_floats is not None, f"{self.name} is quantized"
        return self.read_floats()

    def decode(self, rows: slice = ALL) -> F32:
        """The weight as F32[OC, IC] (or F32[n]); of a float tensor some ``rows``."""
        if self.read_floats is None:
            return self.codes().decode()
        stored = self.values()[rows]
        return decode_floats(self.dtype, stored.reshape(-1).view(np.uint8)).reshape(stored.shape)


def read_onnx(folder: Path) -> dict[str, OnnxTensor]:
    """Every weight of DIR/model.onnx by its Hugging Face name; a tied head is none. Raises DamagedFileError."""
    graph = Graph(folder)
    tensors: dict[str, OnnxTensor] = {}
    for name, tensor in graph.initializers.items():
        if name.endswith((".weight", ".bias")) and tensor.data_type in FLOATS:
            kind = FLOATS[tensor.data_type][0]
            tensors[name] = OnnxTensor(name, "float", kind, tuple(tensor.dims), read_floats=partial(graph.array, tensor))
    owners: dict[str, str] = {}
    for stem, nodes in _linears(graph).items():
        name = f"{stem}.weight"
        held = graph.resolve(nodes[0].input[CODES_INPUT[nodes[0].op_type]]).name
        if owners.setdefault(held, name) != name:
            continue  # the head over the embedding's initializer
        if name in tensors:
            raise DamagedFileError(f"{graph.path}: {name} is there as floats and as codes")
        form = "split" if _is_slice(nodes[0]) else FORMS[nodes[0].op_type]
        tensors[name] = OnnxTensor(name, form, "U8", _shape(graph, nodes), read_codes=partial(READERS[form], graph, nodes))
    return tensors


def _linears(graph: Graph) -> dict[str, list[onnx.NodeProto]]:
    """Nodes that hold codes, by the part of their name before the role, embedding first."""
    out: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.model.graph.node:
        if node.op_type in CODES_INPUT:
            out.setdefault(_stem(node), []).append(node)
    return dict(sorted(out.items(), key=lambda item: item[1][0].op_type != "GatherBlockQuantized"))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def _stem(node: onnx.NodeProto) -> str:
    return node.name.rpartition("/")[0]


def _is_slice(node: onnx.NodeProto) -> bool:
    return node.op_type == "MatMulNBits" and node.name.rpartition("/")[2] != "MatMulNBits"


def _shape(graph: Graph, nodes: list[onnx.NodeProto]) -> tuple[int, int]:
    """(OC, IC) as the nodes have it; a Slice behind an embedding cuts the filling of its last block."""
    a = _attributes(nodes[0])
    try:
        if nodes[0].op_type != "GatherBlockQuantized":
            return sum(_attributes(node)["N"] for node in nodes), a["K"]
        rows, blocks, _ = graph.resolve(nodes[0].input[0]).dims
        ends = [int(graph.read(cut.input[2]).item()) for cut in graph.named[f"{_stem(nodes[0])}/Slice"]]
        return rows, ends[0] if ends else blocks * a["block_size"]
    except (KeyError, ValueError) as error:
        raise DamagedFileError(f"{graph.path}: {nodes[0].name} is not as it should be ({error})") from error


def _nbits(graph: Graph, node: onnx.NodeProto, rows: slice = ALL) -> OnnxCodes:
    """One MatMulNBits as it is."""
    a = _attributes(node)
    bits, block, n, k = a.get("bits", 4), a["block_size"], a["N"], a["K"]
    groups = -(-k // block)
    codes = unpack(graph.read(node.input[1]).reshape(n, -1)[rows], bits, groups * block)[:, :k]
    scale = graph.read(node.input[2]).reshape(n, groups)[rows].astype(np.float32)
    zero = _zero_points(graph, node, (n, groups), bits)[rows]
    return OnnxCodes(codes, scale, zero, block, True)


def _read_matmul(graph: Graph, nodes: list[onnx.NodeProto], rows: slice) -> OnnxCodes:
    (node,) = nodes
    return _nbits(graph, node, rows)


def _read_gather(graph: Graph, nodes: list[onnx.NodeProto], rows: slice) -> OnnxCodes:
    """GatherBlockQuantized over [rows, n_blocks, bytes of a block]."""
    (node,) = nodes
    a = _attributes(node)
    bits, block, packed = a.get("bits", 4), a["block_size"], graph.read(node.input[0])
    n, groups, _ = packed.shape
    codes = unpack(packed.reshape(n, -1)[rows], bits, groups * block)[:, : _shape(graph, nodes)[1]]
    scale = graph.read(node.input[2]).reshape(n, groups)[rows].astype(np.float32)
    zero = np.full(scale.shape, 1 << bits - 1, np.uint8)
    if len(node.input) > 3:
        zero = graph.read(node.input[3]).reshape(n, groups)[rows]
    return OnnxCodes(codes, scale, zero, block, True)


def _read_split(graph: Graph, nodes: list[onnx.NodeProto], rows: slice) -> OnnxCodes:
    """One MatMulNBits for each group of output channels, in the order in which Concat joins them."""
    by_output = {node.output[0]: node for node in nodes}
    (concat,) = [node for node in graph.readers[nodes[0].output[0]] if set(node.input) == set(by_output)]
    ordered = [by_output[name] for name in concat.input]
    parts = [_nbits(graph, node) for node in ordered]
    if any((part.scale != 1).any() for part in parts):
        raise DamagedFileError(f"{graph.path}: {concat.name} joins nodes whose scales are not 1")
    scales = [_scale_row(graph, node.input[0]) for node in ordered]
    (held,) = {name for name, _ in scales}
    order = np.array([row for _, row in scales])
    scale = graph.read(held)[order, 0, 0].T.astype(np.float32)
    zero = np.stack([part.zero_point[0, 0] for part in parts])[None].repeat(scale.shape[0], axis=0)
    for node in graph.named[f"{_stem(concat)}/Sub"]:  # mid - z, where mid is what every part subtracts already
        if any((part.zero_point != graph.read(node.input[0])).any() for part in parts):
            raise DamagedFileError(f"{graph.path}: {node.name} and the zero points of {concat.name} do not cancel")
        zero = graph.read(node.input[1])[order, 0, 0].T
    codes = np.concatenate([part.codes for part in parts]).T
    return OnnxCodes(codes[rows], scale[rows], zero[rows], len(parts[0].codes), False)


def _scale_row(graph: Graph, name: str) -> tuple[str, int]:
    """Which row of which initializer multiplies the activations that arrive as ``name``: back through Split, Mul, Split."""
    node, row = graph.producers[name], 0
    if node.op_type == "Split":
        row = list(node.output).index(name)
        node = graph.producers[node.input[0]]
    held = node.input[1]
    cut = graph.producers.get(held)
    if cut is not None and cut.op_type == "Split":
        row += int(graph.read(cut.input[1])[: list(cut.output).index(held)].sum())
        held = cut.input[0]
    return held, row


def _read_adadim(graph: Graph, nodes: list[onnx.NodeProto], rows: slice) -> OnnxCodes:
    """MatMulAdaDim, by its specification."""
    (node,) = nodes
    a = _attributes(node)
    per_oc, bits = bool(a["per_oc"]), a["bits"]
    n, cols = (a["N"], a["K"]) if per_oc else (a["K"], a["N"])
    groups = -(-cols // a["group_size"])
    stored_codes, stored_scale, stored_zero = (graph.read(name) for name in node.input[1:4])
    if a["layout"] == 0:
        codes = unpack(stored_codes.reshape(n, -1), bits, cols)
        scale, zero = stored_scale.reshape(n, groups), unpack(stored_zero, bits, groups)
    elif a["layout"] == 1:
        outputs = tile_codes(stored_codes, bits)
        codes = (outputs if per_oc else outputs.T)[:n, :cols]
        scale, zero = tile_scales(stored_scale, groups, per_oc)[:n], tile_zero_points(stored_zero, bits, groups, per_oc)[:n]
    else:
        raise DamagedFileError(f"{graph.path}: {node.name} has layout {a['layout']}, which is not specified")
    zero = np.broadcast_to(zero, (n, groups))
    return OnnxCodes(codes[rows], scale[rows].astype(np.float32), zero[rows], a["group_size"], per_oc)


def _zero_points(graph: Graph, node: onnx.NodeProto, shape: tuple[int, int], bits: int) -> U8:
    """MatMulNBits's zero points U8[rows, groups], or the middle where there are none."""
    if len(node.input) < 4 or not node.input[3]:
        return np.full(shape, 1 << bits - 1, np.uint8)
    return unpack(graph.read(node.input[3]).reshape(shape[0], -1), bits, shape[1])


FORMS = {"MatMulNBits": "matmulnbits", "GatherBlockQuantized": "gather", "MatMulAdaDim": "matmul_adadim"}
READERS: dict[str, Callable[[Graph, list[onnx.NodeProto], slice], OnnxCodes]] = {
    "matmulnbits": _read_matmul,
    "gather": _read_gather,
    "matmul_adadim": _read_adadim,
    "split": _read_split,
}
