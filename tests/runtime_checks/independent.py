"""How far a GGUF is from its source by nothing of ours: gguf-py reads the files, numpy decodes blocks, transformers runs both.

Of files whose other tensors are the source's own, as they are where nothing was tuned or folded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

NAMES = {  # of a Gemma 3, in a GGUF -> in transformers
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def q4_0(blocks: np.ndarray) -> np.ndarray:
    """U8[n, 18]: a half float, then 16 bytes; the low halves are the first 16 weights."""
    halves = blocks[:, 2:]
    codes = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32) - 8
    return blocks[:, :2].copy().view(np.float16).astype(np.float32) * codes


def q8_0(blocks: np.ndarray) -> np.ndarray:
    """U8[n, 34]: a half float, then 32 signed bytes."""
    return blocks[:, :2].copy().view(np.float16).astype(np.float32) * blocks[:, 2:].copy().view(np.int8)


DECODERS = {Kind.Q4_0: (q4_0, 18), Kind.Q8_0: (q8_0, 34)}


def decoded(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every matrix that is quantized, F32 [rows, columns] by transformers' name."""
    for tensor in GGUFReader(path).tensors:
        if tensor.tensor_type in (Kind.F32, Kind.F16, Kind.BF16):
            continue
        decode, size = DECODERS[tensor.tensor_type]
        values = decode(np.asarray(tensor.data).reshape(-1, size)).reshape(*map(int, tensor.shape[::-1]))
        block, _, part = tensor.name.removeprefix("blk.").removesuffix(".weight").rpartition(".")
        yield ("model.embed_tokens" if not block else f"model.layers.{block}.{NAMES[part]}") + ".weight", values


@torch.no_grad()
def divergence(source: Path, file: Path, text: str, context: int, chunks: int) -> float:
    """Mean KL(source || file), nats a token, over the second half of each of the first ``chunks`` of the text's tokens."""
    options = {"gguf_file": source.name, "local_files_only": True}
    ids = AutoTokenizer.from_pretrained(source.parent, **options)(text)["input_ids"][: context * chunks]
    whole = GgufConfig(gguf_file=source.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, quantization_config=whole, **options).eval()
    tokens = torch.tensor(ids).reshape(chunks, 1, context)
    expected = [predictions(model, chunk) for chunk in tokens]
    parameters = dict(model.named_parameters())
    changed = 0
    for name, values in decoded(file):
        parameters[name].copy_(torch.from_numpy(values))
        changed += 1
    assert changed > 7 * model.config.num_hidden_layers
    kl = [(p.exp() * (p - predictions(model, chunk))).sum(-1) for p, chunk in zip(expected, tokens, strict=True)]
    return float(torch.cat(kl).mean())


def predictions(model: torch.nn.Module, chunk: torch.Tensor) -> torch.Tensor:
    """Log-probabilities F64 of the second half of I64[1, context]."""
    half = chunk.shape[1] // 2
    return model(input_ids=chunk).logits[0, half - 1 : -1].double().log_softmax(-1)
