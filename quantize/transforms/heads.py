"""Channels between v and o: one of v's is read by every query head of its group (GQA)."""

from __future__ import annotations

import numpy as np

from quantize.model_config import ModelConfig
from quantize.transforms.fold import Basis, Fold
from quantize.types import F32

MADE = ("self_attn.v_proj.weight", "self_attn.v_proj.bias")
OUTPUT = "self_attn.o_proj.weight"


def shared(per_column: F32, config: ModelConfig) -> F32:
    """F32 of o's columns [heads * head_dim], above 0 -> of v's rows [kv_heads * head_dim], the group's geometric mean."""
    groups = np.log(per_column).reshape(config.num_kv_heads, -1, config.head_dim)
    out: F32 = np.exp(groups.mean(1)).ravel()
    return out


def value_fold(basis: Basis, config: ModelConfig) -> Fold:
    """The fold of a basis of v's rows, which stay in their heads."""
    rows = np.arange(len(basis.order)).reshape(config.num_kv_heads, 1, config.head_dim)
    per_group = config.num_heads // config.num_kv_heads
    source = np.repeat(rows, per_group, axis=1).ravel()  # v's row that each column of o reads
    start = np.arange(len(source)) // config.head_dim * config.head_dim
    columns = Basis(start + basis.order[source] % config.head_dim, basis.factor[source])
    return Fold(dict.fromkeys(MADE, basis), {OUTPUT: columns})
