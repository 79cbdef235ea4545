"""Rotary embeddings against transformers' own, which is the truth: which keys count, and what they give."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.model_config import ModelConfig
from tests.tiny import Sizes, tiny_config

SIZES = Sizes(64, 4, 2, 16, 96, 2, 320)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
VARIANTS = {
    "none": {},
    "theta": {"rope_theta": 500000.0},
    "theta in rope_scaling only": {"rope_theta": None, "rope_scaling": {"rope_type": "default", "rope_theta": 500000.0}},
    "theta inside and outside": {"rope_theta": 1e6, "rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
    "theta in rope_parameters": {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "both": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "the older key": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3": {"rope_scaling": LLAMA3},
    "llama3, other ends": {"rope_scaling": LLAMA3 | {"low_freq_factor": 2.0, "high_freq_factor": 3.0}},
    "yarn": {"rope_scaling": YARN},
    "yarn, attention_factor": {"rope_scaling": YARN | {"attention_factor": 1.0}},
    "yarn, betas": {"rope_scaling": YARN | {"beta_fast": 16.0, "beta_slow": 2.0}},
    "yarn, mscale": {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
    "yarn, not truncated": {"rope_scaling": YARN | {"truncate": False}},
    "yarn, no original": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_frequencies_and_their_scale_are_those_of_transformers(model_type, variant):
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = {
        key: value
        for key, value in (tiny_config(SIZES, model_type, True, "F32") | VARIANTS[variant]).items()
        if value is not None
    }
    copy = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items() if key != "model_type"}
    rotary = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **copy)).model.rotary_emb
    rope = ModelConfig.from_hf(raw, "config.json").rope
    np.testing.assert_allclose(rope.frequencies(SIZES.head_dim), rotary.inv_freq.numpy(), rtol=1e-6)
    assert rope.attention_factor == pytest.approx(rotary.attention_scaling, rel=1e-6)
