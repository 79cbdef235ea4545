"""What a GGUF, an ONNX folder or a store holds, from its headers alone: no weight is read.

The report of all three::

    {"totals":  {"bytes", "weights", "bits_per_weight"},
     "tensors": [{"name", "grid", "bits", "group_size", "axis", "shape", "bytes"}, ...]}

``totals.bytes`` is the whole file (for a folder: model.onnx and its external data), ``totals.weights`` counts every tensor's
weights, and ``totals.bits_per_weight`` speaks of the decoder's linear layers alone, from the bytes that they take in the file.
A tensor of floats has its dtype as grid, and no group size and axis (None). Shapes are (OC, IC) as in ``nn.Linear``,
of a stack (experts, OC, IC). Of a weight whose parts read some input channels each, the first part has its name and the
whole shape, and ``reads``, how many channels are its own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from exporter.made_for import target_of
from exporter.targets import TARGETS, GgufTarget, OnnxTarget
from exporter.writers import writer_at
from quantize.checkpoint.gguf_config import ARCHITECTURES
from quantize.checkpoint.gguf_source import check_gguf_model
from quantize.checkpoint.gguf_values import GgufValues
from quantize.errors import FileFormatError, listed, shown
from quantize.gguf.container import TensorInfo
from quantize.gguf.files import GgufFiles, Misplaced, open_files
from quantize.gguf.names import WEIGHT_IC, to_source_name
from quantize.grids import GRIDS, GridJson, grid_to_json
from quantize.kinds import Kind, Wanted, is_store, kind_of, mistaken
from quantize.model_config import is_linear, weight_name
from quantize.outside import Count, Size
from quantize.store.record import TensorRecord
from quantize.store.schema import Dtype, FoundTurnJson, Shape, TensorName, TurnJson, Word, check_turns
from quantize.store.tensors import QuantizedStore
from quantize.types import Axis

if TYPE_CHECKING:
    from quantize.onnx.reader import OnnxGraph

Report = dict[str, Any]
FLOAT_BITS = {"F32": 32, "F16": 16, "BF16": 16}
CODES_INPUT = {"MatMulNBits": 1, "GatherBlockQuantized": 0}  # operator -> which input has the codes
ONNX_FLOATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def inspect(path: Path) -> Report:
    """The report of FILE.gguf, an ONNX folder or a store. Raises FileFormatError or StoreError.

    An ONNX folder's report has ``nodes``, the number of nodes in the graph, and, if we wrote it, ``target``. A store's has
    ``target``, ``imatrix`` (the importance matrix's name, sha256, texts and chunks, or None), ``transforms`` (in how many
    layers each was applied) and, per quantized tensor, ``rounder``, ``loss`` (of every axis that was tried) and ``note``; its
    ``bytes`` are those that the target will take, because codes lie unpacked in a store.
    """
    if is_store(path):
        return _inspect_store(path)
    if writer_at(path) == "onnx":
        return _inspect_onnx(path)
    if not path.is_file():
        raise FileFormatError(mistaken(path, Wanted.FILE))
    return _inspect_gguf(path)


def _report(tensors: list[Report], total_bytes: int) -> Report:
    linears = [item for item in tensors if item["linear"]]
    weights = sum(_weights(item) for item in linears)
    bits = 8 * sum(item["bytes"] for item in linears) / weights if weights else 0.0
    totals = {"bytes": total_bytes, "weights": sum(_weights(item) for item in tensors), "bits_per_weight": bits}
    return {"totals": totals, "tensors": [{key: value for key, value in item.items() if key != "linear"} for item in tensors]}


def _size(item: Report) -> int:
    return math.prod(item["shape"])


def _weights(item: Report) -> int:
    """Of the model: a part that stands beside a weight adds bytes, and no weights."""
    return _size(item) if weight_name(item["name"]) == item["name"] else 0


def _item(name: str, hf_name: str, shape: Iterable[int], stored: int) -> Report:
    """A tensor of floats until its grid is filled in; ``linear`` is taken out by ``_report``."""
    keys, sizes = {"grid": None, "bits": None, "group_size": None, "axis": None}, list(shape)
    return {"name": name, **keys, "shape": sizes, "bytes": stored, "linear": is_linear(weight_name(hf_name), sizes)}


def _inspect_store(path: Path) -> Report:
    store = QuantizedStore(path)
    target = target_of(store)
    tensors = [_store_item(record, target) for record in store.records.values()]
    return _report(tensors, sum(item["bytes"] for item in tensors)) | {
        "target": store.target,
        "imatrix": store.header.get("imatrix"),
        "transforms": {name: digits.count("1") for name, digits in store.header.get("transforms", {}).items()},
    }


def _store_item(record: TensorRecord, target: GgufTarget | OnnxTarget) -> Report:
    grid, item = (
        record.grid,
        _item(record.name, record.name, record.shape, 0) | _reading(record.name, record.shape, record.inputs),
    )
    if grid is None:
        bits = FLOAT_BITS[record.dtype]
        return item | {"grid": record.dtype.lower(), "bits": bits, "bytes": math.prod(record.shape) * bits // 8}
    stored = target.stored_bytes(grid, record.axis, record.shape)
    item |= grid_to_json(grid) | {"axis": str(record.axis)}
    return item | {"bytes": stored, "rounder": record.rounder, "loss": dict(record.loss), "note": record.note}


def _inspect_gguf(path: Path) -> Report:
    files = read_gguf_files(path)
    return _report([_gguf_item(tensor) for tensor in files.tensors.values()], files.nbytes)


def read_gguf_files(path: Path) -> GgufFiles:
    """What llama.cpp's own reader would take, split or not. Raises FileFormatError."""
    try:
        if kind_of(path) is not Kind.GGUF:
            raise FileFormatError(mistaken(path, Wanted.FILE))
        return open_files(path)
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror}); name a file that can") from error
    except Misplaced as error:
        raise FileFormatError(f"{path}: {error}") from error
    except ValueError as error:
        raise FileFormatError(f"{path}: a damaged GGUF ({error}); export it again") from error


def check_loads(path: Path) -> None:
    """Whether the tensors of a GGUF are a model by its own metadata. Other things, and models of other decoders, are let be.

    Raises CheckpointError for one that llama.cpp would refuse.
    """
    if kind_of(path) is not Kind.GGUF:
        return
    files = read_gguf_files(path)
    values = GgufValues(files.metadata, str(path))
    kind, arch = values.get("general.type"), values.get("general.architecture")
    known = arch in ARCHITECTURES or (arch is None and kind == "model")
    other = kind not in (None, "model") or not files.tensors
    transposed = any(name.endswith(WEIGHT_IC) for name in files.tensors)
    if known and not other and not transposed:
        check_gguf_model(files.tensors, values, str(path))


def _gguf_item(tensor: TensorInfo) -> Report:
    name, kind, shape = tensor.name, str(tensor.type.name), tensor.shape
    transposed = name.endswith(WEIGHT_IC)
    hf_name = to_source_name(name)  # its own: rope_freqs.weight, or a tensor of another tool's model
    item = _item(name, hf_name, reversed(shape) if transposed else shape, tensor.nbytes)
    grid = GRIDS.get(kind.lower())
    if grid is None or isinstance(grid, type):
        return item | {"grid": kind.lower(), "bits": FLOAT_BITS.get(kind)}
    axis = Axis.PER_IC if transposed else Axis.PER_OC
    return item | {"grid": grid.name, "bits": grid.bits, "group_size": grid.group_size, "axis": str(axis)}


def _reading(name: str, shape: Sequence[int], inputs: int) -> Report:
    """What is said more of a weight's first part, if it reads but some of its ``inputs``."""
    return {"shape": [shape[0], inputs], "reads": shape[1]} if inputs and weight_name(name) == name else {}


class _Floats(msgspec.Struct):
    """A weight of floats in ``adadim.tensors``."""

    name: TensorName
    shape: Shape
    grid: Dtype
    axis: Axis


class _Codes(GridJson, kw_only=True):
    """A quantized one."""

    name: TensorName
    shape: Annotated[tuple[Size, ...], msgspec.Meta(min_length=2, max_length=3)]
    axis: Axis
    inputs: Count = 0
    turn: TurnJson | None = None
    activation: Word = ""
    found_turn: FoundTurnJson | None = None

    def __post_init__(self) -> None:
        self.make()
        check_turns(self.turn, self.found_turn, self.shape, self.axis)


def _inspect_onnx(folder: Path) -> Report:
    from quantize.onnx.reader import MODEL_FILE, read_graph

    graph = read_graph(folder)
    known = _known(graph)
    if known is None:
        described, target = _node_items(graph), {}
    else:
        described, target = _described_items(graph, known), {"target": graph.metadata["adadim.target"]}
    names = {item["name"] for item in described}
    floats = [
        _float_item(tensor, graph.stored_bytes(tensor))
        for name, tensor in graph.initializers.items()
        if name.endswith((".weight", ".bias")) and name not in names
    ]
    total = sum((folder / name).stat().st_size for name in {MODEL_FILE, *graph.locations})
    return _report(described + floats, total) | {"nodes": len(graph.model.graph.node), **target}


def _known(graph: OnnxGraph) -> list[_Floats | _Codes] | None:
    """The tensors that our writer names; None for a folder of another tool. Raises FileFormatError."""
    from quantize.onnx.reader import DOOR, MODEL_FILE

    if "adadim.target" not in graph.metadata:
        return None
    where = f"{graph.folder / MODEL_FILE}: adadim.tensors in its metadata"
    target = TARGETS.get(graph.metadata["adadim.target"])
    if not isinstance(target, OnnxTarget):
        raise DOOR.refused(where, f"is for target '{shown(graph.metadata['adadim.target'])}', which is none of ONNX's")
    entries = DOOR.json(graph.metadata.get("adadim.tensors", "").encode(), where, list[dict[str, Any]])
    known = list[_Floats | _Codes]()
    for index, entry in enumerate(entries):
        kind: type[_Floats | _Codes] = _Floats if entry.get("grid") in FLOAT_BITS else _Codes
        known.append(DOOR.convert(entry, f"{where}[{index}]", kind))
        lack = None if isinstance(known[-1], _Floats) else _lack(target, known[-1])
        if lack is not None:
            raise DOOR.refused(f"{where}[{index}]", lack)
    if len({item.name for item in known}) != len(known):
        raise DOOR.refused(where, "names a tensor twice")
    return known


def _lack(target: OnnxTarget, entry: _Codes) -> str | None:
    turns = None if entry.turn is None else target.lacks_turns
    turns = turns or (None if entry.found_turn is None else target.lacks_block_turns)
    return turns or target.lacks(entry.make(), entry.axis)


def _described_items(graph: OnnxGraph, described: list[_Floats | _Codes]) -> list[Report]:
    """Of our own folder. Raises FileFormatError."""
    from quantize.onnx.reader import DOOR, MODEL_FILE

    stored: dict[str, int] = defaultdict(int)
    for tensor in graph.initializers.values():
        stored[_owner(tensor.name)] += graph.stored_bytes(tensor)
    missing = [item.name for item in described if item.name not in stored]
    if missing:
        raise DOOR.refused(graph.folder / MODEL_FILE, f"has no tensor for {listed(missing)} of adadim.tensors in its metadata")
    for node in graph.model.graph.node:  # the split form's nodes are part of what a weight costs
        stored[node.name.rpartition("/")[0].removesuffix(".sum") + ".weight"] += node.ByteSize()
    return [_described_item(item, stored[item.name]) for item in described]


def _node_items(graph: OnnxGraph) -> list[Report]:
    """Of another tool's folder: the nodes that hold codes, named by their place in the graph; linear is all but the head.

    Raises FileFormatError.
    """
    from quantize.onnx.reader import quantized_sizes

    initializers = graph.initializers
    out = []
    for node in graph.model.graph.node:
        codes = initializers.get(node.input[CODES_INPUT[node.op_type]]) if node.op_type in CODES_INPUT else None
        sizes = quantized_sizes(node) if codes is not None else None
        if codes is None or sizes is None:  # no codes, or those of the head again
            continue
        bits, dims = sizes["bits"], [*codes.dims, 1]
        rows, cols = sizes.get("N", dims[0]), sizes.get("K", 8 * math.prod(dims[1:]) // bits)
        name = (node.name.strip("/").rpartition("/")[0] or node.name).replace("/", ".") + ".weight"
        stored = sum(graph.stored_bytes(initializers[name]) for name in node.input if name in initializers)
        item = _item(name, name, (rows, cols), stored + node.ByteSize())
        grid = {"grid": "int", "bits": bits, "group_size": sizes["block_size"], "axis": str(Axis.PER_OC)}
        out.append(item | grid | {"linear": node.op_type == "MatMulNBits" and "lm_head" not in name})
    return out


def _described_item(entry: _Floats | _Codes, stored: int) -> Report:
    item = _item(entry.name, entry.name, entry.shape, stored)
    if isinstance(entry, _Floats):
        return item | {"grid": entry.grid.lower(), "bits": FLOAT_BITS[entry.grid]}
    return item | grid_to_json(entry.make()) | {"axis": str(entry.axis)} | _reading(entry.name, entry.shape, entry.inputs)


def _float_item(tensor: Any, stored: int) -> Report:  # noqa: ANN401
    import onnx

    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    item = _item(tensor.name, tensor.name, tensor.dims, stored)
    return item | {"grid": ONNX_FLOATS.get(str(dtype), str(dtype)), "bits": 8 * dtype.itemsize}


def _owner(initializer: str) -> str:
    """The weight that an initializer belongs to: NAME.weight for NAME.weight.codes, NAME.weight.scale and their like."""
    name, part, _ = initializer.partition(".weight.")
    return name + ".weight" if part else initializer
