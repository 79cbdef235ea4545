"""The whole ONNX file from the store's records alone: the graph with every weight's nodes, and where each byte will be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, TypedDict

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from exporter.onnx.adadim_op import DOMAIN, VERSION, adadim_function, matmul_adadim
from exporter.onnx.adadim_op import OP_TYPE as MATMUL
from exporter.onnx.float16 import in_float16
from exporter.onnx.floats import float_embedding, float_linear, float_tied_head, vector
from exporter.onnx.graph import HOLE, Decoder, build_decoder, exported_context, template_decoder
from exporter.onnx.layout import Layout, lay_out, too_large
from exporter.onnx.levels_op import OP_TYPE as LEVELS
from exporter.onnx.levels_op import levels_function, matmul_levels
from exporter.onnx.matmul_nbits import embedding, matmul_nbits, tied_head
from exporter.onnx.qdq import Inputs, static_linear
from exporter.onnx.qmoe import float_moe, qmoe
from exporter.onnx.split import split_form
from exporter.onnx.sums import Summand, summed
from exporter.onnx.tensors import FLOAT_TYPES, Form, Planned, Wire
from exporter.onnx.turns import OP_TYPE as ROTATE
from exporter.onnx.turns import Turns, rotate_function
from quantize.errors import ExportError, asked
from quantize.grids import grid_to_json
from quantize.grids.int_affine import IntAffine
from quantize.grids.levels import Levels
from quantize.model_config import EMBEDDING, HEAD, named, weight_name
from quantize.onnx.moe import experts_of
from quantize.onnx.template import INSIDE, external
from quantize.outside import LARGEST
from quantize.store.record import TensorRecord
from quantize.store.seal import OPEN
from quantize.store.tensors import QuantizedStore
from quantize.types import Array, Axis

BODIES = {MATMUL: adadim_function, LEVELS: levels_function, ROTATE: rotate_function}
PRODUCER = "adadim-edge"
ADADIM_TARGET = "onnxruntime+adadim"
SEALS = DATA_SEAL, FILES_SEAL, GRAPH_SEAL = tuple(f"adadim.sha256.{part}" for part in ("data", "files", "graph"))


@dataclass(frozen=True)
class OnnxPlan:
    """``forms`` of each tensor of the store (two for a tied embedding); ``layout`` of the data files, ``planned`` bytes of which
    are initializers' and the rest is padding; ``constants`` that lie there too."""

    model: ModelProto
    forms: Mapping[str, tuple[Form, ...]]
    layout: Layout
    constants: Mapping[str, Array]
    planned: int

    @property
    def nbytes(self) -> int:
        """Of model.onnx and its data files."""
        return int(self.model.ByteSize()) + sum(self.layout.sizes.values())

    def turns_before(self, name: str) -> bool:
        """Whether that weight's tensors hold a turn that was found."""
        return any(tensor.name == f"{name}.turn.order" for form in self.forms[name] for tensor in form.planned)


@dataclass(frozen=True)
class OnnxOptions:
    """How a store is written. ``accuracy_level``: 0 leaves activations alone, 4 lets the kernels round them to 8 bits (fast).
    ``context``: positions for which rotary tables are written, cut to the model's own limit. ``split_size``: bytes of a file of
    the model at most; None for one data file. ``onnx_dtype``: "float32" or "float16", of activations, caches and logits."""

    accuracy_level: int = 4
    context: int = 4096
    split_size: int | None = None
    onnx_dtype: str = "float32"


class OnnxAsked(TypedDict, total=False):
    """Fields of OnnxOptions by their names; what is left out is as there."""

    accuracy_level: int
    context: int
    split_size: int | None
    onnx_dtype: str


def plan_onnx(store: QuantizedStore, options: OnnxOptions) -> OnnxPlan:
    """Decide everything but the bytes. Raises ExportError if the store does not hold what the model needs on the int grid, or
    no file of the size asked for holds it, or float16 cannot hold its graph."""
    decoder, kind = _decoder(store, options), FLOAT_TYPES[options.onnx_dtype]
    _check_names(store, decoder)
    forms: dict[str, list[Form]] = {name: [] for name in store.records}
    nodes, turns, inputs = list[NodeProto](), Turns(), Inputs()
    for node in decoder.model.graph.node:
        if node.domain != HOLE:
            own, stacks = _experts(store, node, options)
            nodes += own
            for name, form in stacks.items():
                forms[name].append(form)
            continue
        record = store.records[node.input[1]]
        parts, added = summed([record, *store.beside(record.name)], Wire(node.input[0], node.output[0], kind))
        for turned, turning in map(turns.before, parts):
            part, rounding = inputs.before(turned)
            form = part.form(_form(store, part, node.op_type == "MatMul", options.accuracy_level))
            forms[part.record.name].append(form)
            nodes += [*turning, *rounding, *form.nodes]
        nodes += added
    decoder = replace(decoder, constants={**decoder.constants, **turns.constants, **inputs.constants})
    for name, found in forms.items():
        if not found:
            found.append(vector(store.records[name], kind))
    return _assemble(store, decoder, nodes, {name: tuple(found) for name, found in forms.items()}, options)


def _decoder(store: QuantizedStore, options: OnnxOptions) -> Decoder:
    context = exported_context(store.config, options.context)
    if store.skeleton is None:
        decoder = build_decoder(named(store.config, store.path), store.tied, context)
    else:
        decoder = template_decoder(store.skeleton.model, store.tied, context, store.config.max_position)
    return in_float16(decoder, str(store.path)) if options.onnx_dtype == "float16" else decoder


def _form(store: QuantizedStore, part: Summand, head: bool, accuracy_level: int) -> Form:
    record, wire = part.record, part.wire
    floats = record.grid is None
    if record.name == EMBEDDING and not head:
        return float_embedding(record, wire) if floats else embedding(record, wire)
    if record.name == EMBEDDING:
        return float_tied_head(record, wire) if floats else tied_head(record, wire, accuracy_level)
    if floats:
        return float_linear(record, wire)
    if record.activation is not None and record.activation.grid.static:
        return static_linear(record, wire)
    if isinstance(record.grid, Levels):
        return matmul_levels(record, wire, accuracy_level)
    if store.target == ADADIM_TARGET and record.name != HEAD:
        return matmul_adadim(record, wire, accuracy_level)
    if record.axis is Axis.PER_OC:
        return matmul_nbits(record, wire, accuracy_level)
    return split_form(record, wire, accuracy_level)


def _experts(store: QuantizedStore, node: NodeProto, options: OnnxOptions) -> tuple[list[NodeProto], dict[str, Form]]:
    """A node that is no hole, or over stacks in the form that they have in the store, and these forms."""
    experts = experts_of(node)
    if experts is None or not set(experts.stacks) <= set(store.records):
        return [node], {}
    if options.onnx_dtype != "float32":
        told = f"{experts.up} is computed with other experts by one node, which is written for float32 alone"
        raise ExportError(f"{store.path}: {told}; leave {asked('onnx_dtype')} out")
    floats = [name for name in experts.stacks if store.records[name].grid is None]
    if len(floats) == 1:
        raise ExportError(f"{store.path}: {floats[0]} is floats and its partner is not, which no node takes; quantize again")
    return float_moe(node, experts, store.records) if floats else qmoe(node, experts, store.records, options.accuracy_level)


def _check_names(store: QuantizedStore, decoder: Decoder) -> None:
    for record in store.records.values():
        if isinstance(record.grid, Levels) and (record.name in (EMBEDDING, HEAD) or len(record.shape) > 2):
            raise ExportError(f"{store.path}: {record.name}: only a linear is multiplied by levels; quantize again")
        if record.grid is not None and not isinstance(record.grid, IntAffine | Levels):
            raise ExportError(f"{store.path}: {record.name}: only int grids and levels have an ONNX form; quantize again")
    whole = {name for name in store.records if weight_name(name) == name}
    missing, unused = sorted(decoder.weights - whole), sorted(whole - decoder.weights)
    if missing or unused:
        names = f"lacks {missing[0]}" if missing else f"holds {unused[0]}, which the model's graph does not use"
        raise ExportError(f"{store.path}: the store {names}; does its config.json belong to these weights?")


def _assemble(
    store: QuantizedStore,
    decoder: Decoder,
    nodes: list[NodeProto],
    forms: dict[str, tuple[Form, ...]],
    options: OnnxOptions,
) -> OnnxPlan:
    constants, where = dict(decoder.constants), str(store.header["source"]["name"])
    planned: list[Planned] = []
    for form in (form for found in forms.values() for form in found):
        constants |= form.constants
        planned += form.planned
    outside = {name: np.ascontiguousarray(value) for name, value in constants.items() if value.nbytes > INSIDE}
    planned += [Planned(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape) for name, value in outside.items()]
    model = decoder.model
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items() if name not in outside
    )
    layout = lay_out(planned, options.split_size, where)
    model.graph.initializer.extend(
        external(tensor.name, tensor.data_type, tensor.shape, layout.places[tensor.name]) for tensor in planned
    )
    ours = {node.op_type for node in nodes if node.domain == DOMAIN}
    if ours:
        model.functions.extend(body() for name, body in BODIES.items() if name in ours)
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    model.producer_name, model.producer_version = PRODUCER, version(PRODUCER)
    helper.set_model_props(
        model, {"adadim.accuracy_level": str(options.accuracy_level), **_metadata(store, forms, options.onnx_dtype == "float16")}
    )
    size = int(model.ByteSize())
    assert size < LARGEST, (where, size)
    if options.split_size is not None and size > options.split_size:
        raise too_large(f"its graph takes {size:,} bytes", size, options.split_size, where)
    return OnnxPlan(model, forms, layout, outside, sum(tensor.nbytes for tensor in planned))


def _turn_to_json(record: TensorRecord) -> dict[str, object]:
    """As a file says it, whose size has to be known before a turn is found."""
    if record.found_turn is not None:
        return {"found_turn": replace(record.found_turn, site="").to_json()}
    return {} if record.turn is None else {"turn": record.turn.to_json()}


def _metadata(store: QuantizedStore, forms: Mapping[str, tuple[Form, ...]], halved: bool) -> dict[str, str]:
    """``adadim.tensors``, a JSON list of every weight matrix, ``adadim.*``, the store's header, and SEALS, still open."""
    tensors = []
    for name, record in store.records.items():
        if len(record.shape) == 1:
            continue
        entry: dict[str, object] = {"name": name, "form": forms[name][0].form, "shape": list(record.shape)}
        if record.grid is None:
            entry |= {"grid": record.dtype, "axis": str(Axis.PER_OC)}
        else:
            activation = {} if record.activation is None else {"activation": record.activation.name}
            entry |= grid_to_json(record.grid) | {"axis": str(record.axis)} | _turn_to_json(record) | activation
            if halved and "scale_dtype" in entry and entry["form"] != "split":
                entry["scale_dtype"] = "float16"
        if record.inputs and weight_name(name) == name:
            entry["inputs"] = record.inputs
        tensors.append(entry)
    keys = ("target", "row_order", "config", "source", "calibration", "transforms", "notes")
    header: dict[str, Any] = {key: store.header[key] for key in keys if key in store.header}
    if header.get("calibration"):  # without what only the statistics tell: a file's size is known before they are made
        header["calibration"] = {key: value for key, value in header["calibration"].items() if key != "rank_poor"}
    described = {
        f"adadim.{key}": value if isinstance(value, str) else json.dumps(value, sort_keys=True) for key, value in header.items()
    }
    described["adadim.tune_steps"] = str(header.get("config", {}).get("tune_steps", 0))
    return {"adadim.version": version(PRODUCER), **described, "adadim.tensors": json.dumps(tensors), **dict.fromkeys(SEALS, OPEN)}
