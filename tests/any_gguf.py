"""Random GGUFs of a few thousand weights, of architectures that are known by no name here; made without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from exporter.gguf.file import write_gguf
from quantize.gguf.container import TensorInfo, Value, ValueType, encode_header, padded, parse_header
from tests.stores import rtn_store
from tests.tiny import make_tiny_model

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, EXPERTS, EXPERT_FFN = 64, 96, 4, 2, 16, 2, 4, 96
Q, KV = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
ATTENTION = {"attn_q": (Q, HIDDEN), "attn_k": (KV, HIDDEN), "attn_v": (KV, HIDDEN), "attn_output": (HIDDEN, Q)}
MLP = {"ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN)}
NORMS = {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}
HEAD_NORMS = {"attn_q_norm": (HEAD_DIM,), "attn_k_norm": (HEAD_DIM,)}
STACKS = {
    "ffn_gate_inp": (EXPERTS, HIDDEN),
    "ffn_gate_exps": (EXPERTS, EXPERT_FFN, HIDDEN),
    "ffn_up_exps": (EXPERTS, EXPERT_FFN, HIDDEN),
    "ffn_down_exps": (EXPERTS, HIDDEN, EXPERT_FFN),
}
JOINED = {"attn_qkv": (Q + 2 * KV, HIDDEN), "attn_output": (HIDDEN, Q), "ffn_up": (2 * FFN, HIDDEN), "ffn_down": (HIDDEN, FFN)}
BLOCKS: Mapping[str, Mapping[str, tuple[int, ...]]] = {  # tensors of a block, by architecture
    "gemma3": {**NORMS, **ATTENTION, **HEAD_NORMS, **MLP, "post_attention_norm": (HIDDEN,), "post_ffw_norm": (HIDDEN,)},
    "phi3": {**NORMS, **JOINED},
    "qwen3moe": {**NORMS, **ATTENTION, **HEAD_NORMS, **STACKS},
    "llama": {**NORMS, **ATTENTION, **STACKS},  # Mixtral
}
UNTIED = ("phi3", "qwen3moe", "llama")
KEEP_F32 = ("norm", "ffn_gate_inp")  # as llama.cpp's converter does
Change = Callable[[dict[str, np.ndarray]], None]
SCALE = {"ffn_down": 0.3, "attn_output": 0.3}


def make_gguf(path: Path, arch: str, kind: str = "F16", change: Change | None = None) -> Path:
    """Write one with matrices of ggml type ``kind``. ``change`` edits its tensors, F32 by name, beforehand."""
    rng = np.random.default_rng(0)
    metadata = _tokenizer(path.parent) | _keys(arch)
    vocab = 320
    tensors = {"token_embd.weight": rng.standard_normal((vocab, HIDDEN)) / 4, "output_norm.weight": np.ones(HIDDEN)}
    if arch in UNTIED:
        tensors["output.weight"] = rng.standard_normal((vocab, HIDDEN)) / 8
    for index in range(LAYERS):
        for name, shape in BLOCKS[arch].items():
            values = 1 + rng.standard_normal(shape) / 8 if len(shape) == 1 else rng.standard_normal(shape) / np.sqrt(shape[-1])
            if len(shape) > 1:
                values[..., rng.integers(shape[-1], size=3)] *= 4  # outlier channels
            tensors[f"blk.{index}.{name}.weight"] = SCALE.get(name, 1) * values
    floats = {name: np.asarray(values, np.float32) for name, values in tensors.items()}
    if change is not None:
        change(floats)
    path.write_bytes(encode(metadata, floats, kind))
    return path


def encode(metadata: Mapping[str, Value], tensors: Mapping[str, np.ndarray], kind: str) -> bytes:
    """A whole GGUF; vectors, norms and routers stay F32."""
    infos, parts, offset = list[TensorInfo](), list[bytes](), 0
    for name, values in tensors.items():
        own = GGMLQuantizationType["F32" if values.ndim == 1 or any(word in name for word in KEEP_F32) else kind]
        data = quantize(values, own).tobytes()
        infos.append(TensorInfo(name, own, values.shape, offset))
        parts.append(data.ljust(padded(len(data), 32), b"\0"))
        offset += len(parts[-1])
    return encode_header(metadata, infos) + b"".join(parts)


def _tokenizer(folder: Path) -> dict[str, Value]:
    model = make_tiny_model(folder / "tokenizer")
    file = write_gguf(rtn_store(model, folder / "tokenizer-store"), folder / "tokenizer.gguf", force=True)
    return {key: value for key, value in parse_header(file.read_bytes()).metadata.items() if key.startswith("tokenizer.")}


def _keys(arch: str) -> dict[str, Value]:
    numbers = {
        "context_length": 512,
        "embedding_length": HIDDEN,
        "block_count": LAYERS,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "rope.dimension_count": HEAD_DIM,
        "attention.sliding_window": 128,
    }
    if "ffn_gate_inp" in BLOCKS[arch]:
        numbers |= {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": EXPERT_FFN}
    floats = {"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 10000.0}
    return (
        {"general.architecture": Value.encode(ValueType.STRING, arch), "general.type": Value.encode(ValueType.STRING, "model")}
        | {f"{arch}.{key}": Value.encode(ValueType.U32, number) for key, number in numbers.items()}
        | {f"{arch}.{key}": Value.encode(ValueType.F32, number) for key, number in floats.items()}
    )
