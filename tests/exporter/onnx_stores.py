"""Stores made by rounding tiny models to nearest, and their ONNX folders run in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import FunctionProto, ModelProto, TensorProto, helper, numpy_helper

from exporter.onnx.tensors import Form
from quantize import Axis, PlainTensor, QuantizedStore, QuantizedTensor, dequantize, open_checkpoint
from quantize.blocks import to_blocks, to_rows
from quantize.model_config import EMBEDDING, HEAD, ModelConfig
from quantize.store.record import TensorRecord
from quantize.store.writer import StoreWriter
from quantize.types import F32, Grid
from quantize.weight import Part
from tests.tiny import make_tiny_model

EMBEDDING_ROWS = 100  # a chunk: the last one is shorter


def rtn(name: str, weight: F32, grid: Grid, axis: Axis) -> QuantizedTensor:
    rows = to_rows(weight, axis)
    blocks = to_blocks(rows, grid.block_size)
    params = grid.fit(blocks)
    codes = grid.encode(blocks, *grid.scale_zero(params)).reshape(len(rows), -1)[:, : rows.shape[1]]
    return QuantizedTensor(name, np.ascontiguousarray(codes), axis, grid, params)


def stored_rows(q: QuantizedTensor, start: int, stop: int) -> QuantizedTensor:
    """A chunk of the stored rows (OC for PER_OC, IC for PER_IC); scales move along."""
    return replace(q, codes=q.codes[start:stop], params={key: value[start:stop] for key, value in q.params.items()})


def one_node_model(form: Form, shape: tuple[int, int], tensor: QuantizedTensor, body: FunctionProto) -> ModelProto:
    """A linear (OC, IC) alone in a graph, with the body of its operator."""
    data = {planned.name: bytearray(planned.nbytes) for planned in form.planned}
    for name, offset, piece in form.pour(0, tensor):
        data[name][offset : offset + len(piece)] = piece
    assert all(len(data[planned.name]) == planned.nbytes for planned in form.planned)
    tensors = [helper.make_tensor(p.name, p.data_type, p.shape, bytes(data[p.name]), raw=True) for p in form.planned]
    tensors += [numpy_helper.from_array(value, name) for name, value in form.constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", shape[1]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(form.nodes, "one", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(body.domain, 1)]
    return helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=11)


ABOUT = {
    "config": {"method": "rtn-oc", "selection": "hessian", "token_weight": "unit"},
    "source": {"name": "source", "sha256": "0" * 64},
}


@dataclass(frozen=True)
class Recipe:
    """``axis_of``: axis of a linear by its name; ``embedding`` None keeps the source's floats."""

    grid: Grid
    axis_of: Callable[[str], Axis]
    embedding: Grid | None
    target: str = "onnxruntime"


def make_store(source: Path, out: Path, recipe: Recipe) -> tuple[QuantizedStore, dict[str, F32]]:
    """The store, and the weights that it stands for."""
    checkpoint, weights = open_checkpoint(source), dict[str, F32]()
    with StoreWriter(out, force=True) as writer:
        for name, spec in checkpoint.specs.items():
            values = checkpoint.read(name)
            grid = recipe.embedding if name in (EMBEDDING, HEAD) else recipe.grid
            if values.ndim == 1:
                writer.append(Part(PlainTensor(name, values, "F32")), TensorRecord(name, spec.shape))
            elif grid is None:
                plain = checkpoint.raw(name)
                writer.append(Part(plain), TensorRecord(name, spec.shape, dtype=plain.dtype))
            else:
                axis = Axis.PER_OC if name in (EMBEDDING, HEAD) else recipe.axis_of(name)
                q = rtn(name, values, grid, axis)
                rows = EMBEDDING_ROWS if name in (EMBEDDING, HEAD) else len(q.codes)
                for start in range(0, len(q.codes), rows):
                    writer.append(Part(stored_rows(q, start, start + rows)), TensorRecord(name, spec.shape, grid, axis=axis))
                values = dequantize(q)
            weights[name] = values
        header = {"target": recipe.target, "row_order": "hf", **ABOUT}
        writer.finish(header, checkpoint.assets())
    return QuantizedStore(out), weights


def tiny_store(path: Path, recipe: Recipe, model_type: str = "llama", **sizes: object) -> tuple[QuantizedStore, dict[str, F32]]:
    return make_store(make_tiny_model(path / "source", model_type, **sizes), path / "store", recipe)  # type: ignore[arg-type]


class Session:
    """A folder in onnxruntime, with the KV cache that is left from the last call."""

    def __init__(self, folder: Path, config: ModelConfig, batch: int) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.mask = np.zeros((batch, 0), np.int64)
        empty = np.zeros((batch, config.num_kv_heads, 0, config.head_dim), np.float32)
        self.past = {f"{i}.{part}": empty for i in range(config.num_layers) for part in ("key", "value")}

    def __call__(self, ids: np.ndarray) -> F32:
        self.mask = np.concatenate([self.mask, np.ones_like(ids)], 1)
        past = {f"past_key_values.{key}": value for key, value in self.past.items()}
        names = ["logits", *(f"present.{key}" for key in self.past)]
        logits, *present = self.session.run(names, {"input_ids": ids, "attention_mask": self.mask, **past})
        self.past = dict(zip(self.past, present, strict=True))
        return logits
