"""Random Hugging Face folders of a few thousand weights, of architectures that are known by no name here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.gguf_template import GgufTemplate
from quantize.checkpoint.gguf_tensors import open_language_model
from quantize.template.convert import convert
from quantize.template.converter import find_converter
from tests.tiny import TEXT, tiny_tokenizer, write_tokenizer

VOCAB = 400
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
GQA = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 512}
MHA = GQA | {"num_key_value_heads": 4}
HEADS = GQA | {"head_dim": 16}
WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention"] * 2}  # llama.cpp has a full one in six, or four
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
MODELS: Mapping[str, Mapping[str, Any]] = {  # config.json beyond defaults, by model_type
    "llama": GQA,
    "mistral": HEADS,
    "qwen2": GQA,
    "qwen3": HEADS,
    "gemma": HEADS,
    "gemma2": HEADS | {"sliding_window": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": HEADS | SLIDING | {"query_pre_attn_scalar": 16},
    "phi3": GQA | {"pad_token_id": 0},
    "smollm3": GQA | {"pad_token_id": 0},
    "lfm2": GQA | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "granite": GQA,
    "granitemoe": GQA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": GQA | {"pad_token_id": 0},
    "olmoe": MHA | {"num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0},
    "stablelm": GQA,
    "starcoder2": GQA,
    "mixtral": HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": GQA | EXPERTS | {"shared_expert_intermediate_size": 96, "decoder_sparse_step": 1},
    "qwen3_moe": HEADS | EXPERTS | {"decoder_sparse_step": 1, "norm_topk_prob": True},
    "gpt2": {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": SIZES | {"rotary_pct": 0.25, "max_position_embeddings": 512},
    "ernie4_5": HEADS,
    "hunyuan_v1_dense": HEADS,
    "cohere": GQA,
    "nemotron": HEADS,
    "exaone4": HEADS | {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    "apertus": GQA,
    "falcon_h1": HEADS | {
        "mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
    },
    "mamba2": {
        "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16, "state_size": 16,
        "n_groups": 1, "chunk_size": 16,
    },
    "seed_oss": HEADS | {"pad_token_id": 0},
    "olmo": GQA | {"pad_token_id": 0},
    "phi": MHA | {"intermediate_size": 256, "pad_token_id": 0},
    "gpt_oss": HEADS | WINDOWS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "arcee": GQA,
}  # fmt: skip


def gguf_template(model: Path, folder: Path) -> GgufTemplate:
    """``model`` as the converter writes it into ``folder``, taken as a template even if its family is known by name."""
    path = folder / "model.gguf"
    convert(model, path, find_converter(), pre="gpt-2")
    return opened_template(path, model)


def opened_template(path: Path, model: Path) -> GgufTemplate:
    """As ``gguf_template`` left it."""
    return GgufTemplate(path, *open_language_model(path), twin=model)


def order_of_rows(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where each row of ``right`` is in ``left``."""
    return np.array([int(np.flatnonzero((left == row).all(1))[0]) for row in right])


SENTENCE_PIECE = ("gemma", "gemma2", "ernie4_5", "nemotron")  # of which the converter reads nothing else


def make_model(path: Path, model_type: str, dtype: str = "bfloat16", **more: object) -> Path:
    """Write one, weights as transformers starts them, but larger, so that logits differ."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, bos_token_id=1, eos_token_id=2, **{**MODELS[model_type], **more})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            elif name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter) / 8)
    model.to(getattr(torch, dtype)).save_pretrained(path)
    write_tokenizer(path, VOCAB)
    if model_type in SENTENCE_PIECE:
        write_sentence_piece(path)
    if model_type == "phi3":  # else the converter asks for tokenizer.model
        config = json.loads((path / "tokenizer_config.json").read_text())
        (path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}))
    assert tiny_tokenizer(VOCAB).get_vocab_size() == VOCAB
    return path


def write_sentence_piece(path: Path) -> None:
    """tokenizer.model, of fewer tokens than the embedding has rows."""
    from sentencepiece import SentencePieceTrainer

    with (path / "tokenizer.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT.splitlines()),
            model_writer=file,
            vocab_size=VOCAB - 20,
            model_type="bpe",
            byte_fallback=True,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )


def make_pictured(path: Path) -> Path:
    """A Gemma 3 with its tower for pictures."""
    import torch
    from transformers import AutoModelForImageTextToText, Gemma3Config

    torch.manual_seed(0)
    sight = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=dict(MODELS["gemma3_text"]), vision_config=sight, mm_tokens_per_image=4)
    AutoModelForImageTextToText.from_config(config).to(torch.bfloat16).save_pretrained(path)
    write_tokenizer(path, VOCAB)
    return path
