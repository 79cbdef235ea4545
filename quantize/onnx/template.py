"""A float model as an ONNX folder that is a source, and what its graph is called there.

::

    DIR/model.onnx        the graph, small constants, and FACTS in its metadata; external data below
    DIR/model.onnx.data   weights, and constants that are larger
    DIR/assets/           the small files of the Hugging Face folder, verbatim

A weight is a float initializer NAME.weight or NAME.bias. A matrix that activations are multiplied by lies as [OC, IC]::

    NAME.weight ─ (NAME/Cast) ─ NAME/Transpose ─ NAME/MatMul        model.embed_tokens.weight ─ (Cast) ─ Gather by input_ids
    NAME.weight ─ (NAME/Cast) ─ MoE, a stack [experts, OC, IC]

A head that is the embedding reads it too. The *skeleton* is the same graph without weights and Casts: all of it but numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from quantize.errors import CheckpointError
from quantize.model_config import HEAD, ModelSizes
from quantize.onnx.data import Place, Problem
from quantize.onnx.moe import MOE
from quantize.onnx.reader import MODEL_FILE, check_skeleton
from quantize.outside import LARGEST, MIB, Door, Size, sha256_of
from quantize.types import Array

FACTS, DATA_SEAL = "adadim.template", "adadim.sha256.data"  # in its metadata
DOOR = Door(CheckpointError, "make it again: adadim convert DIR --format onnx", 512 * MIB)
DATA_FILE, ASSETS = "model.onnx.data", "assets"
INSIDE = 1024  # constants up to this size stay in the protobuf: shape inference needs them there
PAGE, LARGE, ALIGNMENT = 4096, 1 << 20, 64  # large tensors start at pages, to be mapped; small ones would waste them
FLOATS: Mapping[str, int] = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
HEAD_TURNED = "lm_head/Transpose"
ENDINGS = (".weight", ".bias")  # of a weight's name
WIDE, NARROW = ".wide", ".narrow"  # values on either side of a Cast to float32
_DATA_FILE = re.compile(re.escape(DATA_FILE) + r"(\.[1-9]\d{0,2})?")
DTYPES = {kind: word for word, kind in FLOATS.items()}


class Genai(msgspec.Struct):
    """``model``: its section of the same name, with ``type`` and ``decoder``. ``share``: whether a cache is written in place."""

    model: dict[str, Any]
    share: bool


class Facts(msgspec.Struct):
    """What is known of the model beside its graph. ``experts``: of a layer. ``made_from``: sha256 of the folder that it was made
    from; ``made_by``: what wrote the graph. ``genai``: the sections of a genai_config.json that follow from the graph."""

    model_type: str
    hidden_size: Size
    num_layers: Size
    max_position: Size
    made_from: str
    made_by: str
    genai: Genai
    experts: int = 0

    def sizes(self, rows: int, raw: Mapping[str, Any]) -> ModelSizes:
        """``rows`` of the embedding; ``raw``: config.json."""
        return ModelSizes(
            model_type=self.model_type,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            vocab_size=rows,
            max_position=self.max_position,
            num_kv_heads=self._of_decoder("num_key_value_heads"),
            head_dim=self._of_decoder("head_size"),
            raw=raw,
        )

    def _of_decoder(self, key: str) -> int:
        """A size that genai is told of; 0 where it is told none."""
        decoder = self.genai.model.get("decoder")
        size = decoder.get(key, 0) if isinstance(decoder, dict) else 0
        return size if isinstance(size, int) and 0 < size <= LARGEST else 0


class Skeleton(NamedTuple):
    """A template's graph without weights, and what it says of itself."""

    model: ModelProto
    facts: Facts


@dataclass(frozen=True)
class FloatWeight:
    """One tensor of a template. ``read`` gives its values in ``shape``, of ``dtype``: BF16 as uint16 bits."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]


def site(name: str) -> str:
    """Prefix of the names of a weight's nodes and values."""
    return name.removesuffix(".weight")


def is_weight(tensor: TensorProto) -> bool:
    """Whether an initializer of a template is one of its weights."""
    return tensor.name.endswith(ENDINGS) and tensor.data_type in DTYPES


def with_head(skeleton: ModelProto, own: bool) -> ModelProto:
    """A copy; ``own``: its head is read from a weight of its own, even if it was the embedding."""
    out = ModelProto()
    out.CopyFrom(skeleton)
    for node in out.graph.node:
        if own and node.name == HEAD_TURNED:
            node.input[0] = HEAD
    return out


def parse_skeleton(data: bytes, where: object) -> ModelProto:
    """What a store holds of a template's graph. Raises CheckpointError."""
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError; its class moved between versions
        raise DOOR.refused(where, "not an ONNX model") from error
    made = {name for node in model.graph.node for name in node.output}
    free = {name for node in model.graph.node for name in node.input if name.endswith(ENDINGS)} - made
    try:
        check_skeleton(model, free - {tensor.name for tensor in model.graph.initializer})
    except Problem as problem:
        raise DOOR.refused(where, str(problem)) from problem
    return model


def facts_of(model: ModelProto, where: object) -> Facts | None:
    """What a graph says of itself; None if it is no template. Raises CheckpointError."""
    held = {entry.key: entry.value for entry in model.metadata_props}
    if FACTS not in held:
        return None
    facts = DOOR.json(held[FACTS].encode(), f"{where}: {FACTS} in its metadata", Facts)
    for key, kind in (("type", str), ("decoder", dict)):
        if not isinstance(facts.genai.model.get(key), kind):
            raise DOOR.refused(where, f"{FACTS} in its metadata: genai.model has no {key}")
    return facts


def write_template(folder: Path, skeleton: ModelProto, weights: Mapping[str, FloatWeight]) -> None:
    """model.onnx and model.onnx.data of a ``skeleton`` and all its weights, one of which is in memory at a time."""
    model = ModelProto()
    model.CopyFrom(skeleton)
    graph, narrow = model.graph, {name for name, weight in weights.items() if weight.dtype != "F32"}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    large = {name: value for name, value in constants.items() if value.nbytes > INSIDE}
    kept = [tensor for tensor in graph.initializer if tensor.name not in large]
    nodes = [one for node in graph.node for one in _widened(node, narrow)]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    with (folder / DATA_FILE).open("wb") as file:
        for name, weight in weights.items():
            graph.initializer.append(_poured(file, name, FLOATS[weight.dtype], weight.read().reshape(weight.shape)))
        for name, value in large.items():
            graph.initializer.append(_poured(file, name, helper.np_dtype_to_tensor_dtype(value.dtype), value))
    model.metadata_props.add(key=DATA_SEAL, value=sha256_of(folder / DATA_FILE))
    (folder / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))


def is_whole(folder: Path, model: ModelProto) -> bool:
    """Whether the data beside a template's graph are those that it was written with."""
    held = {entry.key: entry.value for entry in model.metadata_props}
    return (folder / DATA_FILE).is_file() and held.get(DATA_SEAL) == sha256_of(folder / DATA_FILE)


def _poured(file: BinaryIO, name: str, kind: int, values: Array) -> TensorProto:
    start = aligned(file.tell(), values.nbytes)
    file.write(bytes(start - file.tell()))
    file.write(np.ascontiguousarray(values).tobytes())
    return external(name, kind, values.shape, Place(DATA_FILE, start, values.nbytes))


def _widened(node: NodeProto, narrow: Collection[str]) -> list[NodeProto]:
    """A reader of a weight of 16 bits, and the Cast before it, or behind a look-up, which makes float32 of fewer numbers."""
    stem = node.name.rpartition("/")[0]
    if node.op_type in ("Transpose", MOE):
        casts = {
            name: _widening(name, stem if node.op_type == "Transpose" else site(name)) for name in node.input if name in narrow
        }
        node.input[:] = [casts[name].output[0] if name in casts else name for name in node.input]
        return [*casts.values(), node]
    if node.op_type == "Gather" and node.input[0] in narrow:
        cast = helper.make_node("Cast", [f"{stem}{NARROW}"], [node.output[0]], f"{stem}/Cast", to=TensorProto.FLOAT)
        node.output[0] = cast.input[0]
        return [node, cast]
    return [node]


def _widening(name: str, stem: str) -> NodeProto:
    return helper.make_node("Cast", [name], [f"{stem}{WIDE}"], f"{stem}/Cast", to=TensorProto.FLOAT)


def skeleton_of(model: ModelProto) -> ModelProto:
    """The graph of a template, large constants still outside."""
    out = ModelProto()
    out.CopyFrom(model)
    graph = out.graph
    wide = {node.output[0]: node for node in graph.node if node.op_type == "Cast" and node.output[0].endswith(WIDE)}
    narrow = {node.input[0]: node for node in graph.node if node.op_type == "Cast" and node.input[0].endswith(NARROW)}
    kept = [node for node in graph.node if not any(node is cast for cast in (*wide.values(), *narrow.values()))]
    for node in kept:
        if node.op_type in ("Transpose", MOE):
            node.input[:] = [wide[name].input[0] if name in wide else name for name in node.input]
        elif node.op_type == "Gather" and node.output[0] in narrow:
            node.output[0] = narrow[node.output[0]].output[0]
    constants = [tensor for tensor in graph.initializer if not is_weight(tensor)]
    told = [entry for entry in out.metadata_props if entry.key != DATA_SEAL]
    del graph.node[:], graph.initializer[:], out.metadata_props[:]
    graph.node.extend(kept)
    graph.initializer.extend(constants)
    out.metadata_props.extend(told)
    return out


def external(name: str, kind: int, shape: tuple[int, ...], place: Place) -> TensorProto:
    """An initializer that lies outside of model.onnx."""
    proto = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in asdict(place).items():
        proto.external_data.add(key=key, value=str(value))
    return proto


def data_file(index: int) -> str:
    """The name of a data file, of several that lie beside one graph."""
    return f"{DATA_FILE}.{index}" if index else DATA_FILE


def data_files(model: ModelProto) -> set[str]:
    """Those that a graph reads, of names that we give; an unchecked one may say any."""
    read = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
    return {name for name in read if _DATA_FILE.fullmatch(name)}


def aligned(offset: int, nbytes: int) -> int:
    """Where a tensor of that size may start, from ``offset`` on."""
    step = PAGE if nbytes >= LARGE else ALIGNMENT
    return -(-offset // step) * step
