"""The weights of an exported ONNX folder, read from its bytes.

What holds a weight is told by nodes, which are named ``<weight's name without .weight>/<role>``::

    MatMulNBits           B U8[N, ceil(K / block), block * bits / 8], scales [N, ceil(K / block)],
                          zero points packed U8[N, ceil(n_blocks * bits / 8)], or absent: 2**(bits - 1)
    GatherBlockQuantized  the same codes and scales; zero points U8[rows, n_blocks], one in a byte
    MatMulAdaDim          docs/reference/matmul-adadim.md
    MatMulLevels          docs/reference/matmul-levels.md: ``levels.py``
    RotateAdaDim          before a node with codes, or NAME.turned/... of ONNX's own: ``onnx_turn.py``
    DequantizeLinear      before a MatMul: ``onnx_qdq.py``
    QMoE                  two stacks of experts: ``onnx_stacks.py``
    Gather                of a part beside a weight, NAME.part1: the input channels that it reads
    MatMulNBits_00000 ..  the split form: a node with unit scales for each group of output channels, joined by Concat; scale
                          [groups, 1, 1, K] multiplies its input; zero_point U4 or U8 of the same shape

Scales are F32, or F16 behind a Cast to F32 (MatMulAdaDim takes them as they are). Packed values lie low bits first; only
MatMulAdaDim's 3-bit ones cross bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from runtime_checks.reference.adadim import LAYOUTS
from runtime_checks.reference.decode import U8, Array, DamagedFileError, unpack
from runtime_checks.reference.graph import FLOATS, LARGEST, Graph
from runtime_checks.reference.levels import read_levels
from runtime_checks.reference.onnx_qdq import arrays_of, input_of, shape_of, static_linears
from runtime_checks.reference.onnx_stacks import stacks_of
from runtime_checks.reference.onnx_sum import channels_of, check_part, takes_some, weight_name
from runtime_checks.reference.onnx_tensor import ALL, OnnxCodes, OnnxTensor
from runtime_checks.reference.onnx_turn import turn_of, turns

CODES_INPUT = {"GatherBlockQuantized": 0, "MatMulNBits": 1, "MatMulAdaDim": 1, "MatMulLevels": 1}


def read_onnx(folder: Path) -> dict[str, OnnxTensor]:
    """Every weight of DIR/model.onnx by its Hugging Face name, and every part of one; a tied head is none.

    Raises DamagedFileError.
    """
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
        shape, x = _shape(graph, nodes), nodes[0].input[0]
        tensors[name] = OnnxTensor(
            name,
            form,
            "U8",
            shape,
            read_codes=partial(READERS[form], graph, nodes),
            read_turn=partial(turn_of, graph, x, shape[1]) if turns(graph, x) else None,
            accuracy_level=graph.integers(nodes[0], accuracy_level=0)["accuracy_level"],
        )
    for stack in (*stacks_of(graph), *_static(graph)):
        if stack.name in tensors:
            raise DamagedFileError(f"{graph.path}: {stack.name[:80]} is there twice")
        tensors[stack.name] = stack
    for name, tensor in tensors.items():
        if weight_name(name) != name or takes_some(graph, name):
            tensors[name] = replace(tensor, read_channels=partial(channels_of, graph, name.removesuffix(".weight")))
    for name, tensor in tensors.items():
        if weight_name(name) != name:
            check_part(graph, tensor, tensors.get(weight_name(name)))
    return tensors


def _static(graph: Graph) -> Iterator[OnnxTensor]:
    """Linears whose inputs have scales in the file."""
    for stem, decoding, product in static_linears(graph):
        shape = shape_of(graph, decoding)
        yield OnnxTensor(
            f"{stem}.weight",
            "qdq",
            "U8",
            shape,
            read_codes=partial(_read_static, graph, decoding),
            read_input=partial(input_of, graph, product.input[0]),
        )


def _read_static(graph: Graph, decoding: onnx.NodeProto, rows: slice) -> OnnxCodes:
    codes, scale, zero = arrays_of(graph, decoding)
    return OnnxCodes(codes[rows], scale[rows], zero[rows], codes.shape[1], True)


def _linears(graph: Graph) -> dict[str, list[onnx.NodeProto]]:
    """Nodes that hold codes, by the part of their name before the role, embedding first."""
    out: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.model.graph.node:
        if node.op_type in CODES_INPUT:
            if len(node.input) <= CODES_INPUT[node.op_type] + 1 or len(node.output) != 1:
                raise graph.damaged(f"{node.name[:80]} has {len(node.input)} inputs and {len(node.output)} outputs")
            out.setdefault(_stem(node), []).append(node)
    for stem, nodes in out.items():
        if len(nodes) > 1 and not all(_is_slice(node) for node in nodes):
            raise graph.damaged(f"{stem[:80]} has {len(nodes)} nodes with codes")
    return dict(sorted(out.items(), key=lambda item: item[1][0].op_type != "GatherBlockQuantized"))


def _stem(node: onnx.NodeProto) -> str:
    return node.name.rpartition("/")[0]


def _is_slice(node: onnx.NodeProto) -> bool:
    return node.op_type == "MatMulNBits" and node.name.rpartition("/")[2] != "MatMulNBits"


def _shape(graph: Graph, nodes: list[onnx.NodeProto]) -> tuple[int, int]:
    """(OC, IC) as the nodes have it; a Slice behind an embedding cuts the filling of its last block."""
    node = nodes[0]
    if node.op_type != "GatherBlockQuantized":
        sizes = [graph.integers(node, "N", "K") for node in nodes]
        if len({size["K"] for size in sizes}) != 1:
            raise graph.damaged(f"nodes of {_stem(node)[:80]} have different K")
        return _positive(graph, node, sum(size["N"] for size in sizes), sizes[0]["K"])
    dims, block = graph.resolve(node.input[0]).dims, graph.integers(node, block_size=128)["block_size"]
    if len(dims) != 3:
        raise graph.damaged(f"codes of {node.name[:80]} have the shape {list(dims)}")
    cols = dims[1] * block
    for cut in graph.named[f"{_stem(node)}/Slice"]:
        end = graph.read(cut.input[2]) if len(cut.input) > 2 else np.zeros(0)
        if end.size != 1 or end.dtype.kind != "i" or not 0 < end.item() <= cols:
            raise graph.damaged(f"{cut.name[:80]} ends nowhere in {cols} columns")
        cols = int(end.item())
    return _positive(graph, node, dims[0], cols)


def _positive(graph: Graph, node: onnx.NodeProto, rows: int, cols: int) -> tuple[int, int]:
    if rows < 1 or cols < 1:
        raise graph.damaged(f"{node.name[:80]} has {rows} rows and {cols} columns")
    return rows, cols


def _whole_bytes(graph: Graph, node: onnx.NodeProto, bits: int, block: int) -> int:
    """Bytes of a block of codes that do not cross bytes."""
    if bits not in (2, 4, 8) or block < 8 or block % 8:
        raise graph.damaged(f"{node.name[:80]} has blocks of {block} codes of {bits} bits")
    return block * bits // 8


def _nbits(graph: Graph, node: onnx.NodeProto, rows: slice = ALL) -> OnnxCodes:
    """One MatMulNBits as it is."""
    a = graph.integers(node, "N", "K", "block_size", bits=4)
    bits, block = a["bits"], a["block_size"]
    n, k = _positive(graph, node, a["N"], a["K"])
    size = _whole_bytes(graph, node, bits, block)
    groups = -(-k // block)
    codes = unpack(graph.fitted(node.input[1], (n, groups * size), "u")[rows], bits, groups * block)[:, :k]
    scale = graph.fitted(node.input[2], (n, groups), "f")[rows].astype(np.float32)
    zero = _zero_points(graph, node, (n, groups), bits)[rows]
    return OnnxCodes(codes, scale, zero, block, True)


def _read_matmul(graph: Graph, nodes: list[onnx.NodeProto], rows: slice) -> OnnxCodes:
    (node,) = nodes
    return _nbits(graph, node, rows)


def _read_gather(graph: Graph, nodes: list[onnx.NodeProto], rows: slice) -> OnnxCodes:
    """GatherBlockQuantized over [rows, n_blocks, bytes of a block]."""
    (node,) = nodes
    a = graph.integers(node, block_size=128, bits=4)
    bits, block = a["bits"], a["block_size"]
    size = _whole_bytes(graph, node, bits, block)
    n, cols = _shape(graph, nodes)
    groups = graph.resolve(node.input[0]).dims[1]
    codes = unpack(graph.fitted(node.input[0], (n, groups * size), "u")[rows], bits, groups * block)[:, :cols]
    scale = graph.fitted(node.input[2], (n, groups), "f")[rows].astype(np.float32)
    zero = np.full(scale.shape, 1 << bits - 1, np.uint8)
    if len(node.input) > 3:
        zero = graph.fitted(node.input[3], (n, groups), "u")[rows]
    return OnnxCodes(codes, scale, zero, block, True)


def _read_split(graph: Graph, nodes: list[onnx.NodeProto], rows: slice) -> OnnxCodes:
    """One MatMulNBits for each group of output channels, in the order in which Concat joins them."""
    by_output = {node.output[0]: node for node in nodes}
    joins = [node for node in graph.readers[nodes[0].output[0]] if set(node.input) == set(by_output)]
    if len(joins) != 1 or len(joins[0].input) != len(nodes):
        raise graph.damaged(f"no node joins those of {_stem(nodes[0])[:80]}")
    concat, ordered = joins[0], [by_output[name] for name in joins[0].input]
    parts = [_nbits(graph, node) for node in ordered]
    sizes = [len(part.codes) for part in parts]
    if set(sizes[:-1]) - {sizes[0]} or sizes[-1] > sizes[0] or len({part.codes.shape[1] for part in parts}) != 1:
        raise graph.damaged(f"{concat.name[:80]} joins groups of {sorted(set(sizes))[:5]} output channels")
    if any((part.scale != 1).any() or (part.zero_point != part.zero_point[0, 0]).any() for part in parts):
        raise graph.damaged(f"{concat.name[:80]} joins nodes whose scales are not 1, or whose zero points differ")
    held = [_scale_row(graph, node.input[0]) for node in ordered]
    if len({name for name, _ in held}) != 1:
        raise graph.damaged(f"{concat.name[:80]} joins nodes of several scales")
    order = np.array([row for _, row in held])
    scale = _rows_of(graph, held[0][0], order, parts[0].codes.shape[1], "f").astype(np.float32)
    zero = np.stack([part.zero_point[0, 0] for part in parts])[None].repeat(scale.shape[0], axis=0)
    for node in graph.named[f"{_stem(concat)}/Sub"]:  # mid - z, where mid is what every part subtracts already
        middle = graph.read(node.input[0]) if len(node.input) == 2 else np.zeros(0)
        if middle.size != 1 or any((part.zero_point != middle.item()).any() for part in parts):
            raise graph.damaged(f"{node.name[:80]} and the zero points of {concat.name[:80]} do not cancel")
        zero = _rows_of(graph, node.input[1], order, parts[0].codes.shape[1], "u")
    codes = np.concatenate([part.codes for part in parts]).T
    return OnnxCodes(codes[rows], scale[rows], zero[rows], sizes[0], False)


def _rows_of(graph: Graph, name: str, order: Array, cols: int, kind: str) -> Array:
    """[groups, 1, 1, IC] -> [IC, len(order)], the groups in that order."""
    dims = graph.resolve(name).dims
    if len(dims) != 4 or dims[3] != cols or order.max() >= dims[0]:
        raise graph.damaged(f"{name[:80]} has the shape {list(dims)} for {len(order)} groups of {cols} input channels")
    return graph.fitted(name, (dims[0], cols), kind)[order].T


def _scale_row(graph: Graph, name: str) -> tuple[str, int]:
    """Which row of which initializer multiplies the activations that arrive as ``name``: back through Split, Mul, Split."""
    node, row = graph.producers.get(name), 0
    if node is not None and node.op_type == "Split" and node.input:
        row = list(node.output).index(name)
        node = graph.producers.get(node.input[0])
    if node is None or len(node.input) != 2:
        raise graph.damaged(f"{name[:80]} is not made by a Mul")
    held = node.input[1]
    cut = graph.producers.get(held)
    if cut is not None and cut.op_type == "Split":
        sizes = graph.read(cut.input[1]) if len(cut.input) == 2 else np.zeros(0)
        if sizes.shape != (len(cut.output),) or sizes.dtype.kind != "i" or (sizes < 0).any() or sizes.max() > LARGEST:
            raise graph.damaged(f"{cut.name[:80]} does not say how it splits")
        row += int(sizes[: list(cut.output).index(held)].sum())
        held = cut.input[0]
    return held, row


def _read_adadim(graph: Graph, nodes: list[onnx.NodeProto], rows: slice) -> OnnxCodes:
    """MatMulAdaDim, by its specification."""
    (node,) = nodes
    if len(node.input) < 4:
        raise graph.damaged(f"{node.name[:80]} has {len(node.input)} inputs")
    a = graph.integers(node, "K", "N", "bits", "group_size", "per_oc", "layout")
    _positive(graph, node, a["N"], a["K"])
    if a["bits"] not in (2, 3, 4, 8) or a["group_size"] < 1 or a["layout"] not in LAYOUTS:
        told = f"{a['bits']} bits, groups of {a['group_size']}, layout {a['layout']}"
        raise graph.damaged(f"{node.name[:80]} has {told}, which is not specified")
    n, cols = (a["N"], a["K"]) if a["per_oc"] else (a["K"], a["N"])
    codes, scale, zero = LAYOUTS[a["layout"]](graph, node, a, (n, cols))
    zero = np.broadcast_to(zero, (n, -(-cols // a["group_size"])))
    return OnnxCodes(codes[rows], scale[rows].astype(np.float32), zero[rows], a["group_size"], bool(a["per_oc"]))


def _zero_points(graph: Graph, node: onnx.NodeProto, shape: tuple[int, int], bits: int) -> U8:
    """MatMulNBits's zero points U8[rows, groups], or the middle where there are none."""
    if len(node.input) < 4 or not node.input[3]:
        return np.full(shape, 1 << bits - 1, np.uint8)
    return unpack(graph.fitted(node.input[3], (shape[0], -(-shape[1] * bits // 8)), "u"), bits, shape[1])


FORMS = {
    "MatMulNBits": "matmulnbits",
    "GatherBlockQuantized": "gather",
    "MatMulAdaDim": "matmul_adadim",
    "MatMulLevels": "matmul_levels",
}
READERS: dict[str, Callable[[Graph, list[onnx.NodeProto], slice], OnnxCodes]] = {
    "matmulnbits": _read_matmul,
    "gather": _read_gather,
    "matmul_adadim": _read_adadim,
    "matmul_levels": read_levels,
    "split": _read_split,
}
