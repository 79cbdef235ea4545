"""A config.json for a GGUF's metadata: what transformers would need to build the same decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantize.checkpoint.gguf_values import NO_TOKEN, GgufValues
from quantize.checkpoint.rope import llama3_factors
from quantize.errors import CheckpointError
from quantize.rotary import default_attention_factor
from quantize.types import F32

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# Keys of a scaling that are not carried, and the values with which they change nothing (-1: not set).
UNKNOWN_SCALING = {
    "yarn_ext_factor": (1.0, -1.0),
    "yarn_attn_factor": (1.0, -1.0),
    "yarn_beta_fast": (32.0, -1.0),
    "yarn_beta_slow": (1.0, -1.0),
    "yarn_log_multiplier": (0.0,),
    "alpha": (0.0,),
}
FACTOR_TOLERANCE = 1e-4  # relative: stored factors are float32, and some writers round the parameters


def config_from_gguf(metadata: GgufValues, vocab_size: int, rope_factors: F32 | None, where: str) -> dict[str, Any]:
    """``rope_factors``: rope_freqs.weight F32[head_dim / 2], or whatever goes by that name. Raises CheckpointError."""
    arch = metadata["general.architecture"]
    config = _sizes(metadata, str(arch))
    for key, what in (
        (f"{arch}.rope.dimension_count", "rotary dimensions"),
        (f"{arch}.attention.value_length", "values' lengths"),
    ):
        if metadata.get(key, config["head_dim"]) != config["head_dim"]:
            raise CheckpointError(f"{where}: {what} differ from head_dim {config['head_dim']} ({key}); not supported")
    if vocab_size < 1:
        raise CheckpointError(f"{where}: model.embed_tokens.weight is missing; download the whole model again")
    config["vocab_size"] = vocab_size
    for kind in ("bos", "eos", "padding"):
        if (token := metadata.get(f"tokenizer.ggml.{kind}_token_id", NO_TOKEN)) != NO_TOKEN:
            config[f"{'pad' if kind == 'padding' else kind}_token_id"] = token
    scaling = _rope_scaling(metadata, str(arch), where)
    if rope_factors is not None:
        scaling = _llama3_scaling(rope_factors, config["head_dim"], config["rope_theta"], where)
    return config | ({"rope_scaling": scaling} if scaling else {})


def _sizes(metadata: GgufValues, arch: str) -> dict[str, Any]:
    hidden, heads = metadata.size(f"{arch}.embedding_length"), metadata.size(f"{arch}.attention.head_count")
    epsilon = f"{arch}.attention.layer_norm_rms_epsilon"
    if epsilon not in metadata:
        raise metadata.wrong(f"metadata key '{epsilon}' is missing")
    return {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": metadata.size(f"{arch}.feed_forward_length"),
        "num_hidden_layers": metadata.size(f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.size(f"{arch}.attention.head_count_kv", heads),
        "head_dim": metadata.size(f"{arch}.attention.key_length", hidden // heads),
        "max_position_embeddings": metadata.size(f"{arch}.context_length"),
        "rms_norm_eps": _decimal(metadata[epsilon]),
        "tie_word_embeddings": True,  # llama.cpp takes the embedding where there is no output.weight
        "rope_theta": _decimal(metadata.get(f"{arch}.rope.freq_base", 10000.0)),
    }


def _decimal(value: float) -> float:
    """The shortest decimal that is this float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(metadata: Mapping[str, Any], arch: str, where: str) -> dict[str, Any] | None:
    """The scaling as llama.cpp reads it: linear where only a factor is given, and its ``attn_factor`` on top of yarn's own."""
    prefix = f"{arch}.rope.scaling"
    kind = metadata.get(f"{prefix}.type", "linear")
    factor = metadata.get(f"{prefix}.factor", metadata.get(f"{arch}.rope.scale_linear", 1.0)) or 1.0
    for key, neutral in UNKNOWN_SCALING.items():
        if (value := metadata.get(f"{prefix}.{key}")) is not None and value not in neutral:
            raise CheckpointError(f"{where}: {prefix}.{key} {value} is not supported; use the Hugging Face model instead")
    if kind not in ("none", "linear", "yarn"):
        raise CheckpointError(f"{where}: rope scaling {kind!r} is not supported; supported: none, linear, yarn, llama3")
    if not 0 < factor < np.inf:
        raise CheckpointError(f"{where}: metadata key {prefix}.factor is {factor}, not a positive number; download it again")
    attention = metadata.get(f"{prefix}.attn_factor", 1.0)
    if kind != "yarn":
        if attention != 1:
            raise CheckpointError(f"{where}: {prefix}.attn_factor {attention} with rope scaling {kind} is not supported")
        return None if kind == "none" or factor == 1 else {"rope_type": "linear", "factor": _decimal(factor)}
    scaling = {"rope_type": kind, "factor": _decimal(factor)}
    if original := metadata.get(f"{prefix}.original_context_length"):
        scaling["original_max_position_embeddings"] = int(original)
    return scaling | ({} if attention == 1 else {"attention_factor": attention * default_attention_factor(factor)})


def _llama3_scaling(factors: F32, head_dim: int, theta: float, where: str) -> dict[str, Any] | None:
    """The parameters whose factors these are: between the plateaus 1 and ``factor`` the inverse is linear in the frequency.

    1 / f = (1 - s) / factor + s with s = (original * frequency / 2 pi - low) / (high - low): a line gives two of the
    three unknowns, so low = 1, as every Llama 3 has it.
    """
    strange = f"{where}: rope_freqs.weight does not follow Llama 3's scaling; use the Hugging Face model instead"
    if factors.shape != (head_dim // 2,) or not ((factors >= 1) & (factors < np.inf)).all():
        raise CheckpointError(strange)
    factor = float(factors.max())
    if factor == 1:
        return None
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    inside = (factors > 1) & (factors < factor)
    params = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    params["original_max_position_embeddings"] = 8192
    if inside.sum() >= 2:
        smooth = (1 / factors[inside].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
        slope, offset = (float(number) for number in np.polyfit(frequency[inside], smooth, 1))
        if not (offset < 0 < slope):  # the line of a scaling rises from below
            raise CheckpointError(strange)
        params["high_freq_factor"] = round(1 - 1 / offset, 2)
        params["original_max_position_embeddings"] = round(slope * -1 / offset)
    if not np.allclose(llama3_factors(params, head_dim, theta), factors, FACTOR_TOLERANCE, 0):
        raise CheckpointError(strange)
    return params
