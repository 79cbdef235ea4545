"""Layers whose channels were scaled or reordered before rounding, against the source: by what they compute, not tensor by tensor.

No record of the folds is trusted. What they leave as it is follows from the decoder alone: q and k after their norm, the values
of each head through o, and the MLP with its ``silu`` left out, which is linear in gate x and in up x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quantize.checkpoint.protocol import Checkpoint
from quantize.model_config import ModelConfig
from quantize.types import F32
from runtime_checks.checks.source_check import rounding_tolerance
from runtime_checks.measure.results import Check, within
from runtime_checks.runtimes.decoded import check_shapes, folded_layers
from runtime_checks.runtimes.exported import open_exported
from runtime_checks.runtimes.weights import Part

PROBES = 16  # random inputs: an error's norm is met within a tenth
FLOAT_TOLERANCE = 1e-5  # folded floats and sums in another order, float32
# Rounding leaves an output as large as it was, at any width: the slope of the file's over the source's was .86 to 1.05 at 2 bits.
# A doubled scale gives 2, another tensor or another order of channels about 0.
SLOPE_TOLERANCE = 0.5
PATHS = {  # what is compared, and the weights on the way
    "q": ("self_attn.q_proj",),
    "k": ("self_attn.k_proj",),
    "values": ("self_attn.v_proj", "self_attn.o_proj"),
    "mlp": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}


def check_folds(path: Path, source: Checkpoint) -> list[Check]:
    """Every layer that the file says was folded. Raises FileFormatError for a damaged file."""
    layers = sorted(folded_layers(path))
    if not layers:
        return []
    weights, checks = open_exported(path).weights(source.config), list[Check]()
    check_shapes(path, source.config, weights)
    for index in layers:
        prefix = f"model.layers.{index}."
        parts = {name: weights.part(name) for name in weights.shapes if name.startswith(prefix)}
        probes = np.random.default_rng(index).standard_normal((2, source.config.hidden_size, PROBES), dtype=np.float32)
        held = _outputs({name: part.values for name, part in parts.items()}, prefix, source.config, probes)
        expected = _outputs({name: source.read(name) for name in parts}, prefix, source.config, probes)
        for key, linears in PATHS.items():
            tolerance = _tolerance([parts[f"{prefix}{linear}.weight"] for linear in linears])
            error, slope = _compare(held[key], expected[key])
            checks.append(within("decoded path = source's, but for rounding", prefix + key, error, tolerance))
            checks.append(within("decoded path as large as source's", prefix + key, slope, SLOPE_TOLERANCE))
    return checks


def _outputs(tensors: Mapping[str, F32], prefix: str, config: ModelConfig, probes: F32) -> dict[str, F32]:
    """By the keys of PATHS, for inputs F32[2, hidden, PROBES]: F32[parts, n, PROBES], every part as right as the next."""

    def linear(name: str, x: F32) -> F32:
        bias = tensors.get(f"{prefix}{name}.bias", np.zeros(1, np.float32))
        return tensors[f"{prefix}{name}.weight"] @ x + bias[:, None]

    normed = tensors[f"{prefix}input_layernorm.weight"][:, None] * probes[0]
    values = linear("self_attn.v_proj", normed).reshape(config.num_kv_heads, 1, config.head_dim, PROBES)
    output = tensors[f"{prefix}self_attn.o_proj.weight"].reshape(config.hidden_size, config.num_kv_heads, -1, config.head_dim)
    first, second = tensors[f"{prefix}post_attention_layernorm.weight"][:, None] * probes
    hidden = linear("mlp.gate_proj", first) * linear("mlp.up_proj", second)
    return {
        "q": linear("self_attn.q_proj", normed)[None],
        "k": linear("self_attn.k_proj", normed)[None],
        "values": (output.transpose(1, 2, 0, 3) @ values).reshape(config.num_heads, config.hidden_size, PROBES),
        "mlp": linear("mlp.down_proj", hidden)[None],
    }


def _compare(held: F32, expected: F32) -> tuple[float, float]:
    """Of F32[parts, n, PROBES]: the largest error of a part relative to it, and how far its slope is from 1."""
    axes = (1, 2)
    square = np.square(expected, dtype=np.float64).sum(axes)
    error = np.sqrt(np.square(held - expected, dtype=np.float64).sum(axes) / square)
    slope = (held * expected).sum(axes, dtype=np.float64) / square
    return float(error.max()), float(np.abs(slope - 1).max())


def _tolerance(parts: list[Part]) -> float:
    """Errors of rounding are independent of one another."""
    return math.hypot(FLOAT_TOLERANCE, *(rounding_tolerance(part.bits) for part in parts if part.dtype is None))
