"""Llama 3's rotary scaling as the per-frequency divisors that llama.cpp stores (``rope_freqs.weight``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantize.types import F32


def llama3_factors(params: Mapping[str, Any], head_dim: int, theta: float) -> F32:
    """F32[head_dim / 2]: what each rotary frequency is divided by (transformers ``_compute_llama3_parameters``).

    ``params``: factor, low_freq_factor, high_freq_factor, original_max_position_embeddings. Raises KeyError.
    """
    factor, low, high = (float(params[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = params["original_max_position_embeddings"] * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    factors: F32 = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors
