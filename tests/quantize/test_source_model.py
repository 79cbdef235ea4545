"""Building the whole model from any reader: tied as the tensors are."""

from __future__ import annotations

import numpy as np

from quantize.checkpoint import open_checkpoint
from quantize.model_config import EMBEDDING, HEAD
from quantize.source import build_model, logits
from tests.tiny import make_tiny_model

TOKENS = np.arange(24, dtype=np.int64)[None]


def test_a_head_split_off_a_tied_model_is_used(tmp_path):
    source = open_checkpoint(make_tiny_model(tmp_path / "m", tied=True))
    tied = logits(build_model(source.config, source.read, True), TOKENS)
    head = source.read(EMBEDDING) * np.float32(2)
    split = logits(build_model(source.config, lambda name: head if name == HEAD else source.read(name), False), TOKENS)
    np.testing.assert_allclose(split, 2 * tied, rtol=1e-4, atol=1e-4)


def test_equals_transformers_own_loading(tmp_path):
    from transformers import AutoModelForCausalLM

    for model_type in ("llama", "qwen2", "qwen3", "mistral"):
        folder = make_tiny_model(tmp_path / model_type, model_type, tied=False)
        source = open_checkpoint(folder)
        expected = logits(AutoModelForCausalLM.from_pretrained(folder).eval(), TOKENS)
        np.testing.assert_allclose(logits(build_model(source.config, source.read, False), TOKENS), expected, rtol=1e-4, atol=1e-5)
