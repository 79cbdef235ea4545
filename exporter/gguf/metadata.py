"""The metadata of a GGUF file: from a GGUF source verbatim, from a Hugging Face model by llama.cpp's key names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from exporter.gguf.tokenizer import Metadata, tokenizer_metadata
from quantize.checkpoint import Checkpoint
from quantize.checkpoint.gguf_sizes import METADATA_ASSET
from quantize.checkpoint.template import SKELETON_ASSET
from quantize.errors import ExportError, StoreError, asked
from quantize.gguf.container import Value, ValueType, parse_header
from quantize.model_config import EMBEDDING, ModelConfig, is_linear, named
from quantize.rotary import BETAS, default_attention_factor
from quantize.store.tensors import QuantizedStore
from quantize.types import Axis

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# general.file_type (llama.cpp's llama_ftype) by the type of most weights
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9}
FILE_TYPES |= {"q2_k": 10, "q3_k": 11, "q4_k": 14, "q5_k": 16, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "tq2_0": 37, "mxfp4": 38}
FILE_TYPES |= {"iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq3_s": 26, "iq2_s": 28}
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
TO_ONNX = f"this model cannot be a GGUF; {asked('target', 'onnxruntime')} can hold it"
FORMAT_VERSION = 1  # of docs/reference/gguf-adadim.md


def build_metadata(store: QuantizedStore, tokenizer_pre: str | None) -> Metadata:
    """Every key-value of the file. Raises ExportError for what llama.cpp cannot be told, StoreError for a damaged store."""
    if METADATA_ASSET in store.asset_names():
        out = _from_gguf(store, tokenizer_pre)
    else:
        rows = store.records[EMBEDDING].shape[0]
        assets = {name: store.asset(name) for name in store.asset_names()}
        out = _from_config(store) | tokenizer_metadata(assets, rows, tokenizer_pre, str(store.path / "assets"))
    out["general.file_type"] = _u32(_file_type(store))
    out["general.quantization_version"] = _u32(QUANTIZATION_VERSION)
    return out | _provenance(store)


def check_gguf_source(source: Checkpoint, tokenizer_pre: str | None) -> None:
    """Raises ExportError for what ``build_metadata`` would refuse once quantizing is done."""
    where, config = str(source.path), source.config
    if METADATA_ASSET in source.assets():
        _check_kept(where, tokenizer_pre)
        return
    if SKELETON_ASSET in source.assets():
        raise ExportError(
            f"{where}: an ONNX folder, which holds no metadata of a GGUF; give {asked('target', 'onnxruntime')}, or make a "
            "GGUF of the Hugging Face folder: adadim convert DIR --out MODEL.gguf"
        )
    known = named(config, where)
    arch = ARCHITECTURES[config.model_type]
    _check_biases(source.specs, arch, where)
    _rope_scaling(known, arch, where)
    tokenizer_metadata(source.assets(), source.specs[EMBEDDING].shape[0], tokenizer_pre, where)


def _check_kept(where: str, tokenizer_pre: str | None) -> None:
    if tokenizer_pre:
        raise ExportError(f"{where}: from a GGUF, whose tokenizer is kept as it is; drop {asked('tokenizer_pre', tokenizer_pre)}")


def _from_gguf(store: QuantizedStore, tokenizer_pre: str | None) -> Metadata:
    _check_kept(str(store.path), tokenizer_pre)
    try:
        kept = parse_header(store.asset(METADATA_ASSET)).metadata
    except ValueError as error:
        raise StoreError(f"{store.path / 'assets' / METADATA_ASSET}: {error}; quantize again") from error
    return {key: value for key, value in kept.items() if not key.startswith("adadim.")}  # these tell of the source, if it is ours


def _from_config(store: QuantizedStore) -> Metadata:
    config = named(store.config, store.path)
    arch = ARCHITECTURES[config.model_type]
    _check_biases(store.records, arch, str(store.path))
    attention = f"{arch}.attention"
    return {
        "general.architecture": _text(arch),
        "general.type": _text("model"),
        "general.name": _text(str(store.header["source"]["name"])),
        f"{arch}.vocab_size": _u32(store.records[EMBEDDING].shape[0]),
        f"{arch}.context_length": _u32(config.context),
        f"{arch}.embedding_length": _u32(config.hidden_size),
        f"{arch}.block_count": _u32(config.num_layers),
        f"{arch}.feed_forward_length": _u32(config.intermediate_size),
        f"{attention}.head_count": _u32(config.num_heads),
        f"{attention}.head_count_kv": _u32(config.num_kv_heads),
        f"{attention}.key_length": _u32(config.head_dim),
        f"{attention}.value_length": _u32(config.head_dim),
        f"{attention}.layer_norm_rms_epsilon": _f32(config.rms_norm_eps),
        f"{arch}.rope.dimension_count": _u32(config.head_dim),
        f"{arch}.rope.freq_base": _f32(config.rope.theta),
    } | _rope_scaling(config, arch, str(store.path))


def _check_biases(names: Iterable[str], arch: str, where: str) -> None:
    """llama.cpp's qwen graphs read q, k and v biases (qwen2) or none (qwen3); its llama graph reads all."""
    allowed = {"llama": ("proj.bias",), "qwen2": ("q_proj.bias", "k_proj.bias", "v_proj.bias"), "qwen3": ()}[arch]
    for name in names:
        if name.endswith(".bias") and not name.endswith(allowed):
            raise ExportError(f"{where}: llama.cpp's {arch} has no {name}; this model cannot be a GGUF")


def _rope_scaling(config: ModelConfig, arch: str, where: str) -> Metadata:
    """Key-values of a scaling; Llama 3's is a tensor instead and needs none.

    llama.cpp multiplies cosines and sines by yarn's own factor and by ``attn_factor``. Of the ramp it knows the defaults: keys
    for ``beta_fast`` and ``beta_slow`` exist, but its loaders of these architectures do not read them.
    """
    rope, prefix = config.rope, f"{arch}.rope.scaling"
    if rope.kind == "default":
        return {}
    if rope.kind == "llama3":
        if arch != "llama":
            raise ExportError(f"{where}: llama.cpp's {arch} has no rope scaling llama3; {TO_ONNX}")
        return {}
    out = {f"{prefix}.type": _text(rope.kind), f"{prefix}.factor": _f32(rope.factor)}
    if rope.kind == "linear":
        return out
    told = replace(rope, beta_fast=BETAS[0], beta_slow=BETAS[1], truncate=True)
    if not np.array_equal(told.frequencies(config.head_dim), rope.frequencies(config.head_dim)):
        numbers = f"beta_fast {rope.beta_fast}, beta_slow {rope.beta_slow}, truncate {rope.truncate}"
        raise ExportError(f"{where}: llama.cpp's {arch} reads none of yarn's {numbers} from a file; {TO_ONNX}")
    out[f"{prefix}.original_context_length"] = _u32(rope.original_max_position_embeddings)
    extra = rope.attention_factor / default_attention_factor(rope.factor)
    return out | ({} if extra == 1 else {f"{prefix}.attn_factor": _f32(extra)})


def _file_type(store: QuantizedStore) -> int:
    weights: dict[str, int] = {}
    for record in store.records.values():
        if is_linear(record.name, record.shape):
            kind = record.dtype if record.grid is None else record.grid.name
            weights[kind] = weights.get(kind, 0) + prod(record.shape)
    return FILE_TYPES[max(weights, key=lambda kind: weights[kind])]


def _provenance(store: QuantizedStore) -> Metadata:
    """The ``adadim.*`` keys of docs/reference/gguf-adadim.md."""
    header = store.header
    config, calibration = _mapping(header.get("config")), _mapping(header.get("calibration"))
    texts = {
        "version": header.get("version"),
        "target": store.target,
        "method": config.get("method"),
        "selection": config.get("selection"),
        "token_weight": config.get("token_weight"),
        "transforms": json.dumps(_mapping(header.get("transforms"))),
        "source.name": _mapping(header.get("source")).get("name"),
        "source.sha256": _mapping(header.get("source")).get("sha256"),
        "calibration.name": calibration.get("text"),
        "calibration.sha256": calibration.get("sha256"),
        "imatrix.name": _mapping(header.get("imatrix")).get("name"),
        "imatrix.sha256": _mapping(header.get("imatrix")).get("sha256"),
    }
    numbers = {
        "seed": config.get("seed"),
        "block_steps": config.get("block_steps"),
        "tune_steps": config.get("tune_steps"),
        "calibration.tokens": calibration.get("tokens"),
    }
    out = {f"adadim.{key}": _text(str(value)) for key, value in texts.items() if value is not None}
    out |= {f"adadim.{key}": Value.encode(ValueType.U64, int(value)) for key, value in numbers.items() if value is not None}
    if any(record.grid is not None and record.axis is Axis.PER_IC for record in store.records.values()):
        out["adadim.format_version"] = _u32(FORMAT_VERSION)
    return out


def _mapping(value: Any) -> Mapping[str, Any]:  # noqa: ANN401 - JSON
    return value if isinstance(value, dict) else {}


def _text(value: str) -> Value:
    return Value.encode(ValueType.STRING, value)


def _u32(value: int) -> Value:
    return Value.encode(ValueType.U32, value)


def _f32(value: float) -> Value:
    return Value.encode(ValueType.F32, value)
