"""What onnxruntime-genai has to be told of a graph, in genai_config.json's words, without a model's tokens and lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a configuration is written where no onnx library is
    from onnx import ModelProto

    from quantize.onnx.template import Genai

GENAI_FILE = "genai_config.json"
ANY = "decoder"  # genai's word for a model of which it knows nothing but its inputs and outputs
SHARING = "GroupQueryAttention"  # the one operator whose past and present may lie in one place
SIZES = ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")  # in its order
OF_THE_TEXT = ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "context_length", "decoder")


def genai_facts(folder: Path, model: ModelProto, sizes: Mapping[str, Any]) -> Genai:
    """As the graph's own tool says, if it wrote one; else from the graph. ``sizes``: hidden_size, num_attention_heads,
    num_hidden_layers. Raises ValueError for a graph whose cache genai has no words for."""
    from quantize.onnx.template import Genai

    if (folder / GENAI_FILE).is_file():
        raw = json.loads((folder / GENAI_FILE).read_text(encoding="utf-8"))
        known = {key: value for key, value in raw["model"].items() if key not in OF_THE_TEXT}
        return Genai({**known, "decoder": raw["model"]["decoder"]}, bool(raw["search"]["past_present_share_buffer"]))
    return Genai({"type": ANY, "decoder": _decoder(model, sizes)}, _shares(model))


def head_size(facts: Genai) -> int:
    """Of the cache."""
    return int(facts.model["decoder"]["head_size"])


def _shares(model: ModelProto) -> bool:
    kinds = {node.op_type for node in model.graph.node}
    return SHARING in kinds and "Attention" not in kinds


def _decoder(model: ModelProto, sizes: Mapping[str, Any]) -> dict[str, Any]:
    caches = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name.startswith("past")
    }
    keys = [shape for name, shape in caches.items() if name.startswith("past_key_values.") and name.endswith(".key")]
    if not keys or 2 * len(keys) != len(caches) or len({(shape[1], shape[3]) for shape in keys}) != 1:
        raise ValueError(f"its cache is {', '.join(caches) or 'nothing'}, for which onnxruntime-genai has no words")
    given = [value.name for value in model.graph.input if not value.name.startswith("past")]
    return decoder_section({**sizes, "head_size": keys[0][3], "num_key_value_heads": keys[0][1]}, given)


def decoder_section(sizes: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Of a graph with keys and values of every layer beside the inputs ``given``; ``sizes`` are those of SIZES and others."""
    return {
        "filename": "model.onnx",
        **{key: sizes[key] for key in SIZES},
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "inputs": {**{name: name for name in given}, **_names("past", "past_key_values")},
        "outputs": {"logits": "logits", **_names("present", "present")},
    }


def _names(word: str, prefix: str) -> dict[str, str]:
    return {f"{word}_{part}_names": f"{prefix}.%d.{part}" for part in ("key", "value")}
