"""What a GGUF, an ONNX folder or a store holds, from its headers alone: no weight is read.

The report of all three::

    {"totals":  {"bytes", "weights", "bits_per_weight"},
     "tensors": [{"name", "grid", "bits", "group_size", "axis", "shape", "bytes"}, ...]}

``totals.bytes`` is the whole file (for a folder: model.onnx and its external data), ``totals.weights`` counts every tensor's
weights, and ``totals.bits_per_weight`` speaks of the decoder's linear layers alone, from the bytes that they take in the file.
A tensor of floats has its dtype as grid, and no group size and axis (None). Shapes are (OC, IC) as in ``nn.Linear``.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from exporter.targets import GgufTarget, OnnxTarget, target_of
from quantize.checkpoint.gguf_container import GgufHeader, TensorInfo, map_file, parse_header
from quantize.checkpoint.gguf_names import WEIGHT_IC, to_hf_name_or_own
from quantize.errors import FileFormatError
from quantize.grids import GRIDS, grid_to_json
from quantize.kinds import Kind, Wanted, is_store, kind_of, mistaken
from quantize.model_config import is_linear
from quantize.store import QuantizedStore, TensorRecord
from quantize.types import Axis

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
    if path.is_dir():
        return _inspect_onnx(path)
    if not path.is_file():
        raise FileFormatError(mistaken(path, Wanted.FILE))
    return _inspect_gguf(path)


def _report(tensors: list[Report], total_bytes: int) -> Report:
    linears = [item for item in tensors if item["linear"]]
    weights = sum(_size(item) for item in linears)
    bits = 8 * sum(item["bytes"] for item in linears) / weights if weights else 0.0
    totals = {"bytes": total_bytes, "weights": sum(_size(item) for item in tensors), "bits_per_weight": bits}
    return {"totals": totals, "tensors": [{key: value for key, value in item.items() if key != "linear"} for item in tensors]}


def _size(item: Report) -> int:
    return math.prod(item["shape"])


def _item(name: str, hf_name: str, shape: Iterable[int], stored: int) -> Report:
    """A tensor of floats until its grid is filled in; ``linear`` is taken out by ``_report``."""
    linear = is_linear(hf_name) and hf_name.endswith(".weight")
    keys = {"grid": None, "bits": None, "group_size": None, "axis": None}
    return {"name": name, **keys, "shape": list(shape), "bytes": stored, "linear": linear}


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
    grid, item = record.grid, _item(record.name, record.name, record.shape, 0)
    if grid is None:
        bits = FLOAT_BITS[record.dtype]
        return item | {"grid": record.dtype.lower(), "bits": bits, "bytes": _size(item) * bits // 8}
    stored = target.stored_bytes(grid, record.axis, (record.shape[0], record.shape[1]))
    item |= grid_to_json(grid) | {"axis": str(record.axis)}
    return item | {"bytes": stored, "rounder": record.rounder, "loss": dict(record.loss), "note": record.note}


def _inspect_gguf(path: Path) -> Report:
    header = read_gguf_header(path)
    return _report([_gguf_item(tensor) for tensor in header.tensors.values()], path.stat().st_size)


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a file that llama.cpp's own reader would take. Raises FileFormatError."""
    try:
        if kind_of(path) is not Kind.GGUF:
            raise FileFormatError(mistaken(path, Wanted.FILE))
        return parse_header(map_file(path))
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror}); name a file that can") from error
    except ValueError as error:
        raise FileFormatError(f"{path}: a damaged GGUF ({error}); export it again") from error


def _gguf_item(tensor: TensorInfo) -> Report:
    name, kind, shape = tensor.name, str(tensor.type.name), tensor.shape
    transposed = name.endswith(WEIGHT_IC)
    hf_name = to_hf_name_or_own(name)  # its own: rope_freqs.weight, or a tensor of another tool's model
    item = _item(name, hf_name, reversed(shape) if transposed else shape, tensor.nbytes)
    grid = GRIDS.get(kind.lower())
    if grid is None or isinstance(grid, type):
        return item | {"grid": kind.lower(), "bits": FLOAT_BITS.get(kind)}
    axis = Axis.PER_IC if transposed else Axis.PER_OC
    return item | {"grid": grid.name, "bits": grid.bits, "group_size": grid.group_size, "axis": str(axis)}


def _inspect_onnx(folder: Path) -> Report:
    model = _load_onnx(folder)
    known = _known(folder, model)
    if known is None:
        described, target = _node_items(model), {}
    else:
        described, target = _described_items(model, known["tensors"]), {"target": known["target"]}
    names = {item["name"] for item in described}
    floats = [
        _float_item(tensor, _initializer_bytes(tensor))
        for tensor in model.graph.initializer
        if tensor.name.endswith((".weight", ".bias")) and tensor.name not in names
    ]
    files = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
    total = sum((folder / name).stat().st_size for name in {"model.onnx", *files})
    return _report(described + floats, total) | {"nodes": len(model.graph.node), **target}


def _load_onnx(folder: Path) -> Any:  # noqa: ANN401 - onnx is imported where it is needed
    """The graph without its external data. Raises FileFormatError."""
    import onnx

    path = folder / "model.onnx"
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise FileFormatError(mistaken(folder, Wanted.FILE)) from error
    except Exception as error:  # protobuf's DecodeError; its class moved between versions
        raise FileFormatError(f"{path}: not an ONNX model ({error}); export it again") from error
    if not model.graph.node:
        raise FileFormatError(f"{path}: its graph is empty; export it again")
    return model


def _known(folder: Path, model: Any) -> Report | None:  # noqa: ANN401
    """The target and the tensors that our writer names; None for a folder of another tool. Raises FileFormatError."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if "adadim.target" not in metadata:
        return None
    try:
        return {"target": metadata["adadim.target"], "tensors": json.loads(metadata["adadim.tensors"])}
    except (KeyError, ValueError) as error:
        raise FileFormatError(
            f"{folder / 'model.onnx'}: adadim.tensors in its metadata is damaged or missing; export it again"
        ) from error


def _described_items(model: Any, described: list[Report]) -> list[Report]:  # noqa: ANN401
    """Of our own folder."""
    stored: dict[str, int] = defaultdict(int)
    for tensor in model.graph.initializer:
        stored[_owner(tensor.name)] += _initializer_bytes(tensor)
    for node in model.graph.node:  # the split form's nodes are part of what a weight costs
        stored[node.name.rpartition("/")[0] + ".weight"] += node.ByteSize()
    return [_described_item(entry, stored[entry["name"]]) for entry in described]


def _node_items(model: Any) -> list[Report]:  # noqa: ANN401
    """Of another tool's folder: the nodes that hold codes, named by their place in the graph; linear is all but the head."""
    from onnx.helper import get_attribute_value

    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    out = []
    for node in model.graph.node:
        codes = initializers.get(node.input[CODES_INPUT[node.op_type]]) if node.op_type in CODES_INPUT else None
        if codes is None:  # no codes, or those of the head again
            continue
        a = {item.name: get_attribute_value(item) for item in node.attribute}
        bits, group_size, rows = a.get("bits", 4), a["block_size"], a.get("N", codes.dims[0])
        cols = a.get("K", 8 * math.prod(codes.dims[1:]) // bits)
        name = (node.name.strip("/").rpartition("/")[0] or node.name).replace("/", ".") + ".weight"
        stored = sum(_initializer_bytes(initializers[name]) for name in node.input if name in initializers)
        item = _item(name, name, (rows, cols), stored + node.ByteSize())
        grid = {"grid": "int", "bits": bits, "group_size": group_size, "axis": str(Axis.PER_OC)}
        out.append(item | grid | {"linear": node.op_type == "MatMulNBits" and "lm_head" not in name})
    return out


def _described_item(entry: Report, stored: int) -> Report:
    item = _item(entry["name"], entry["name"], entry["shape"], stored)
    if entry["grid"] in FLOAT_BITS:
        return item | {"grid": entry["grid"].lower(), "bits": FLOAT_BITS[entry["grid"]]}
    return item | {key: value for key, value in entry.items() if key not in ("name", "form", "shape")}


def _float_item(tensor: Any, stored: int) -> Report:  # noqa: ANN401
    import onnx

    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    item = _item(tensor.name, tensor.name, tensor.dims, stored)
    return item | {"grid": ONNX_FLOATS.get(str(dtype), str(dtype)), "bits": 8 * dtype.itemsize}


def _owner(initializer: str) -> str:
    """The weight that an initializer belongs to: NAME.weight for NAME.weight.codes, NAME.weight.scale and their like."""
    name, part, _ = initializer.partition(".weight.")
    return name + ".weight" if part else initializer


def _initializer_bytes(tensor: Any) -> int:  # noqa: ANN401
    """Its bytes in the external file, or in the graph."""
    lengths = [int(entry.value) for entry in tensor.external_data if entry.key == "length"]
    return lengths[0] if lengths else int(tensor.ByteSize())
