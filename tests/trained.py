"""Models that are trained here: a mixture of experts, in a minute on one core, for what random weights have not, experts of their
own; and a dense decoder, in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from quantize.statistics.calibration import BUILTIN, held_out_text, load_text
from tests.tiny import byte_level_bpe, tiny_tokenizer, write_tokenizer

VOCAB, SEQUENCE, BATCH, STEPS, RATE = 1024, 128, 8, 400, 4e-3
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 96,
    "moe_intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "max_position_embeddings": 512,
}
DENSE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
DENSE_STEPS, DENSE_SEQUENCE = 200, 64
CHUNK, CHUNKS = 256, 20  # held-out tokens that the perplexity is of


def train(path: Path) -> float:
    """Write a Qwen3-MoE that has read the built-in calibration text; its perplexity on that text's held-out end. Nothing in it
    asks the router to use all experts alike, and some are used hardly ever."""
    from transformers import AutoConfig, AutoModelForCausalLM

    text = load_text(BUILTIN).text
    tokenizer = byte_level_bpe(text, VOCAB)
    ids, held_out = (torch.tensor(tokenizer.encode(one).ids) for one in (text, held_out_text()))
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **SIZES, **ends))
    _learn(model, ids)
    path.mkdir()
    write_tokenizer(path, VOCAB)
    tokenizer.save(str(path / "tokenizer.json"))
    model.save_pretrained(path)
    with torch.no_grad():
        chunks = held_out[: CHUNK * CHUNKS].reshape(CHUNKS, 1, CHUNK)
        return float(np.exp(np.mean([model(input_ids=chunk, labels=chunk).loss.item() for chunk in chunks])))


def train_dense(path: Path) -> Path:
    """Write a Llama that has read the built-in calibration text; returns its folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path.mkdir()
    write_tokenizer(path, DENSE["vocab_size"])
    ids = torch.tensor(tiny_tokenizer(DENSE["vocab_size"]).encode(load_text(BUILTIN).text[: 1 << 18]).ids)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", **DENSE, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    )
    _learn(model, ids, DENSE_STEPS, DENSE_SEQUENCE)
    model.save_pretrained(path)
    return path


def _learn(model: torch.nn.Module, ids: torch.Tensor, steps: int = STEPS, sequence: int = SEQUENCE) -> None:
    """Windows of I64[n] are drawn by a seed. Leaves the model as it is evaluated."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    windows = ids.unfold(0, sequence, 1)
    for drawn in torch.randint(len(windows), (steps, BATCH), generator=torch.Generator().manual_seed(0)):
        optimizer.zero_grad()
        model(input_ids=windows[drawn], labels=windows[drawn]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
