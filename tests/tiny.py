"""Random decoders of a few thousand weights as Hugging Face directories, for tests: no torch, no network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = """The quick brown fox jumps over the lazy dog, and the dog does not mind at all. In 1984 there were 12 monkeys.
A language model assigns a probability to every next word; the one that the reader expects is the one that costs least.
def add(left, right):
    return left + right  # the sum of the two
Where the weights are large the rounding hurts, and where the inputs are large the rounding hurts more than anywhere else.
She said: "It isn't the model that I'm worried about, it's the numbers." They've been there before; we'll see.
Übergrößenträger, naïve café, 東京 and Москва are words of other tongues; the tokenizer has to hold them as bytes.
"""
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
DTYPES = {"F32": ("float32", np.float32), "F16": ("float16", np.float16), "BF16": ("bfloat16", ml_dtypes.bfloat16)}
OUTLIER = 6.0  # how much larger than its neighbours an outlier input channel is


@dataclass(frozen=True)
class Sizes:
    """What the tensors' shapes follow from."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    layers: int
    vocab: int


def make_tiny_model(
    path: Path,
    model_type: str = "llama",
    *,
    tied: bool = True,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 96,
    layers: int = 2,
    vocab: int = 320,
    head_dim: int | None = None,
    dtype: str = "F32",
    seed: int = 0,
    shards: int = 1,
    rope_scaling: dict[str, object] | None = None,
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> Path:
    """Write config.json, generation_config.json, tokenizer files and safetensors to ``path`` (made if need be); returns it."""
    path.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(hidden, heads, kv_heads, head_dim or hidden // heads, ffn, layers, vocab)
    config = tiny_config(sizes, model_type, tied, dtype)
    if rope_scaling is not None:
        config["rope_scaling"] = rope_scaling
    config |= {key: True for key, given in (("attention_bias", attention_bias), ("mlp_bias", mlp_bias)) if given}
    _write_json(path / "config.json", config)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    _write_json(path / "generation_config.json", {**ids, "do_sample": False})
    write_tokenizer(path, vocab)
    weights = tiny_weights(sizes, model_type, tied, seed)
    if attention_bias or mlp_bias:
        weights |= _biases(weights, ("self_attn",) * attention_bias + ("mlp",) * mlp_bias, seed)
    write_weights(path, weights, dtype, shards)
    return path


def tiny_config(sizes: Sizes, model_type: str, tied: bool, dtype: str) -> dict[str, object]:
    """A config.json as transformers 4 and 5 both read it."""
    return {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocab,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": DTYPES[dtype][0],
    }


def tiny_weights(sizes: Sizes, model_type: str, tied: bool, seed: int) -> dict[str, np.ndarray]:
    """F32 tensors under their Hugging Face names; every linear has a few outlier input channels, different ones each."""
    rng = np.random.Generator(np.random.PCG64(seed))
    hidden, q_rows, kv_rows = sizes.hidden, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim

    def linear(rows: int, cols: int) -> np.ndarray:
        weight = rng.standard_normal((rows, cols), dtype=np.float32) / np.float32(np.sqrt(cols))
        weight[:, rng.choice(cols, 2, replace=False)] *= np.float32(OUTLIER) * rng.random(dtype=np.float32)
        return weight

    def vector(size: int, mean: float) -> np.ndarray:
        return (mean + 0.1 * rng.standard_normal(size)).astype(np.float32)

    out = {"model.embed_tokens.weight": rng.standard_normal((sizes.vocab, hidden), dtype=np.float32) * np.float32(0.3)}
    for index in range(sizes.layers):
        layer = f"model.layers.{index}"
        rows = {"q": q_rows, "k": kv_rows, "v": kv_rows}
        for part, count in rows.items():
            out[f"{layer}.self_attn.{part}_proj.weight"] = linear(count, hidden)
            if model_type == "qwen2":
                out[f"{layer}.self_attn.{part}_proj.bias"] = vector(count, 0.0)
        out[f"{layer}.self_attn.o_proj.weight"] = linear(hidden, q_rows)
        if model_type == "qwen3":
            out[f"{layer}.self_attn.q_norm.weight"] = vector(sizes.head_dim, 1.0)
            out[f"{layer}.self_attn.k_norm.weight"] = vector(sizes.head_dim, 1.0)
        out[f"{layer}.mlp.gate_proj.weight"] = linear(sizes.ffn, hidden)
        out[f"{layer}.mlp.up_proj.weight"] = linear(sizes.ffn, hidden)
        out[f"{layer}.mlp.down_proj.weight"] = linear(hidden, sizes.ffn)
        out[f"{layer}.input_layernorm.weight"] = vector(hidden, 1.0)
        out[f"{layer}.post_attention_layernorm.weight"] = vector(hidden, 1.0)
    out["model.norm.weight"] = vector(hidden, 1.0)
    if not tied:
        out["lm_head.weight"] = linear(sizes.vocab, hidden)
    return out


def _biases(weights: dict[str, np.ndarray], parts: tuple[str, ...], seed: int) -> dict[str, np.ndarray]:
    """One for every linear of the layers' ``parts``."""
    rng = np.random.Generator(np.random.PCG64(seed + 1000))
    linears = [name for name in weights if name.endswith("_proj.weight") and name.split(".")[3] in parts]
    return {
        f"{name.removesuffix('weight')}bias": (0.3 * rng.standard_normal(len(weights[name]))).astype(np.float32)
        for name in linears
    }


def write_weights(path: Path, weights: dict[str, np.ndarray], dtype: str = "F32", shards: int = 1) -> None:
    """Save ``weights`` as one model.safetensors, or as that many shards with their index."""
    _, kind = DTYPES[dtype]
    names = list(weights)
    parts = [names[start::shards] for start in range(shards)]
    index: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = "model.safetensors" if shards == 1 else f"model-{number:05d}-of-{shards:05d}.safetensors"
        tensors = {}
        for name in part:
            tensors[name] = np.ascontiguousarray(weights[name].astype(kind))
            index[name] = file
        save_file(tensors, path / file, {"format": "pt"})
    if shards > 1:
        _write_json(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def tiny_tokenizer(vocab: int) -> Tokenizer:
    """Of TEXT, which has no more than 400 tokens."""
    return byte_level_bpe(TEXT, min(vocab, 400))


def byte_level_bpe(text: str, vocab: int) -> Tokenizer:
    """With SmolLM2's pre-tokenizer (digits one by one); the special tokens come first, as they do there."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def write_tokenizer(path: Path, vocab: int) -> None:
    """tokenizer.json and tokenizer_config.json (with the chat template)."""
    tiny_tokenizer(vocab).save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(path / "tokenizer_config.json", config)


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
