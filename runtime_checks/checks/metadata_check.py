"""What a GGUF says of the model besides its tensors, against the source: sizes, rotary embedding, norms.

A file with transposed tensors runs nowhere yet, so nothing else would notice a wrong number here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.protocol import Checkpoint
from quantize.model_config import ModelConfig
from quantize.types import F32
from runtime_checks.measure.results import Check, within
from runtime_checks.reference.gguf import decode_gguf, read_metadata
from runtime_checks.runtimes.weights import ROPE_FREQS, open_gguf

EXACT = 0.0  # integers and texts are equal, and floats are the float32 of the source's number
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}  # yarn's, where nothing else is said, in transformers and in llama.cpp
ROPE_TOLERANCE = 1e-6  # relative; the factors are float32 of a formula in float64


def check_metadata(path: Path, source: Checkpoint) -> list[Check]:
    """Every key of the architecture, and Llama 3's rotary factors.

    Keys that say nothing of the source's config.json have to be a GGUF source's own. Raises FileFormatError.
    """
    file, config = open_gguf(path), source.config
    arch = "llama" if config.model_type == "mistral" else config.model_type
    expected, held = dict[str, Any]({"general.architecture": arch}), dict(file.metadata)
    if isinstance(config, ModelConfig):
        expected |= {f"{arch}.{key}": value for key, value in _expected(config).items()}
        held = _defaults(config, arch, file.metadata) | held
    origin = read_metadata(source.path) if source.path.is_file() else {}
    for key in (*file.metadata, *origin):
        if key.startswith(f"{arch}."):
            expected.setdefault(key, origin.get(key))
    checks = [within("metadata = source's", key, _difference(held.get(key), value), EXACT) for key, value in expected.items()]
    if not isinstance(config, ModelConfig):  # whose factors are tensors like any other
        return checks
    factors = decode_gguf(file.tensors[ROPE_FREQS]) if ROPE_FREQS in file.tensors else None
    return [*checks, within("rope_freqs = the config's", ROPE_FREQS, _rope_error(factors, config), ROPE_TOLERANCE)]


def _expected(config: ModelConfig) -> dict[str, Any]:
    """llama.cpp's keys, without the architecture's name, and the source's values."""
    out: dict[str, Any] = {
        "context_length": config.context,
        "vocab_size": config.vocab_size,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": _theta(config),
        "rope.scaling.type": "none",
    }
    scaling, kind = _scaling(config), _rope_kind(config)
    if kind in ("linear", "yarn"):
        factor = config.max_position / _original(config) if scaling["factor"] is None else scaling["factor"]
        out |= {"rope.scaling.type": kind, "rope.scaling.factor": factor}
    if kind == "yarn":
        out["rope.scaling.original_context_length"] = _original(config)
        out |= {f"rope.scaling.yarn_{key}": scaling.get(key) or default for key, default in BETAS.items()}
        out["rope.scaling.attn_factor"] = _attention_factor(scaling, factor) / _yarn_factor(factor, 1.0)
    return out


def _scaling(config: ModelConfig) -> Mapping[str, Any]:
    """The object of config.json that transformers takes."""
    return config.raw.get("rope_scaling") or config.raw.get("rope_parameters") or {}


def _theta(config: ModelConfig) -> float:
    return float(_scaling(config).get("rope_theta", config.raw.get("rope_theta", 10000.0)))


def _original(config: ModelConfig) -> int:
    inside = _scaling(config).get("original_max_position_embeddings", config.max_position)
    return int(config.raw.get("original_max_position_embeddings") or inside)


def _attention_factor(scaling: Mapping[str, Any], factor: float) -> float:
    """What transformers multiplies cosines and sines by (``_compute_yarn_parameters``)."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and all_dim:
        return _yarn_factor(factor, mscale) / _yarn_factor(factor, all_dim)
    return _yarn_factor(factor, 1.0)


def _yarn_factor(factor: float, mscale: float) -> float:
    return 1 + mscale * math.log(factor) / 10 if factor > 1 else 1.0


def _defaults(config: ModelConfig, arch: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp takes where a key is missing (``llama_model::load_hparams``)."""
    head_dim = config.hidden_size // config.num_heads
    out = {
        "vocab_size": config.vocab_size,  # it counts the tokens
        "attention.head_count_kv": config.num_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": 10000.0,
        "rope.scaling.type": "linear" if told.get(f"{arch}.rope.scaling.factor", 1) != 1 else "none",
        "rope.scaling.attn_factor": 1.0,
        **{f"rope.scaling.yarn_{key}": value for key, value in BETAS.items()},
        "rope.scaling.original_context_length": config.max_position,
    }
    return {f"{arch}.{key}": value for key, value in out.items()}


def _difference(held: Any, expected: Any) -> float:  # noqa: ANN401 - metadata of any type
    """0 for the same value, else by how much numbers differ; infinity for what cannot be compared.

    A number for each layer is the same as one number if all are equal.
    """
    if isinstance(held, np.ndarray) and not isinstance(expected, np.ndarray):
        return _difference(held[0].item(), expected) if len(held) and (held == held[0]).all() else math.inf
    if np.array_equal(held, expected):
        return 0.0
    if isinstance(held, int | float) and isinstance(expected, int | float):
        return abs(float(np.float32(held)) - float(np.float32(expected)))
    return math.inf


def _rope_kind(config: ModelConfig) -> str:
    scaling = _scaling(config)
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    return "none" if kind == "default" else kind


def _rope_error(factors: F32 | None, config: ModelConfig) -> float:
    """Llama 3's frequency divisors: 1 for short waves, ``factor`` for long ones, a ramp between; without it there are none."""
    expected: Any = np.ones(config.head_dim // 2)
    if _rope_kind(config) == "llama3":
        scaling = _scaling(config)
        factor, original = float(scaling["factor"]), float(_original(config))
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        waves = 2 * np.pi * _theta(config) ** (np.arange(0, config.head_dim, 2) / config.head_dim)
        ramp = np.clip((original / waves - low) / (high - low), 0, 1)
        expected = 1 / ((1 - ramp) / factor + ramp)
    held = np.ones(config.head_dim // 2) if factors is None else factors
    return float(np.abs(held / expected - 1).max()) if held.shape == expected.shape else math.inf
