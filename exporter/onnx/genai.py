"""genai_config.json and the tokenizer files: what makes the folder run in onnxruntime-genai as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter.onnx.genai_tokenizer import genai_tokenizer_files
from quantize.checkpoint.tokenizer_files import generation_id, special_ids
from quantize.model_config import ModelConfig, named
from quantize.store.tensors import QuantizedStore
from quantize.template.onnx_genai import GENAI_FILE, decoder_section

MAX_LENGTH = 1024  # the KV cache is allocated for this many tokens at once: a phone's share, not the model's context


def write_genai_files(store: QuantizedStore, directory: Path, context: int) -> None:
    """Write genai_config.json and the tokenizer files into ``directory``: the store's own bytes where genai reads them right."""
    config = json.dumps(genai_config(store, context), indent=2) + "\n"
    (directory / GENAI_FILE).write_text(config, encoding="utf-8")
    assets = {name: store.asset(name) for name in store.asset_names()}
    for name, data in genai_tokenizer_files(assets, store.config.vocab_size, str(store.path / "assets")).items():
        (directory / name).write_bytes(data)


def genai_config(store: QuantizedStore, context: int) -> dict[str, Any]:
    """The configuration as onnxruntime-genai reads it (its ``src/config.cpp``): greedy, a KV cache of MAX_LENGTH tokens."""
    told, shares = _of_graph(store)
    return {
        "model": {
            **_special_ids(store),
            "type": told["type"],
            "vocab_size": store.config.vocab_size,
            "context_length": context,
            **told,
        },
        "search": {
            "do_sample": False,
            "max_length": min(context, MAX_LENGTH),
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": shares,
        },
    }


def _of_graph(store: QuantizedStore) -> tuple[dict[str, Any], bool]:
    """What genai has to know of the graph, and whether its cache may be written in place."""
    if store.skeleton is None:
        return {"type": store.config.model_type, "decoder": _decoder(named(store.config, store.path))}, True
    genai = store.skeleton.facts.genai
    return genai.model, genai.share


def _decoder(config: ModelConfig) -> dict[str, Any]:
    heads = {"head_size": config.head_dim, "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads}
    sizes = {**heads, "hidden_size": config.hidden_size, "num_hidden_layers": config.num_layers}
    return decoder_section(sizes, ("input_ids", "attention_mask"))


def _special_ids(store: QuantizedStore) -> dict[str, Any]:
    """bos, eos (one or several) and pad ids, as every file of the model says them."""
    assets = {name: store.asset(name) for name in store.asset_names()}
    rows, where = store.config.vocab_size, str(store.path / "assets")
    found = {f"{word}_token_id": generation_id(assets, word, rows, where) for word in ("bos", "pad")}
    out: dict[str, Any] = {key: token for key, token in found.items() if token is not None}
    ends = special_ids(assets, rows, where)["eos"]
    if ends:
        out["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        out.setdefault("pad_token_id", ends[0])  # genai wants one; nothing is padded for a single text
    return {key: out[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in out}
