"""Tensor names: Hugging Face on one side, GGUF on the other."""

from __future__ import annotations

GLOBAL_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WEIGHT, WEIGHT_IC = "weight", "weight_ic"  # the second: stored transposed, which only the gguf-adadim target does
_TO_HF = {gguf: hf for names in (GLOBAL_NAMES, LAYER_NAMES) for hf, gguf in names.items()}


def to_gguf_name(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` -> ``blk.3.ffn_up.weight``. Raises KeyError for what no decoder here has."""
    stem, _, leaf = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{GLOBAL_NAMES[stem]}.{leaf}"
    index, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{LAYER_NAMES[part]}.{leaf}"


def to_hf_name(name: str) -> str:
    """``blk.3.ffn_up.weight`` (or ``.weight_ic``) -> ``model.layers.3.mlp.up_proj.weight``.

    Raises KeyError or ValueError for others.
    """
    stem, _, leaf = name.rpartition(".")
    leaf = WEIGHT if leaf == WEIGHT_IC else leaf
    if not stem.startswith("blk."):
        return f"{_TO_HF[stem]}.{leaf}"
    _, index, part = stem.split(".", 2)
    if not index.isascii() or str(int(index)) != index.removeprefix("-"):
        raise ValueError(f"{name}: no layer is {index!r}")  # "00" and "+0" would be second names of layer 0
    return f"model.layers.{index}.{_TO_HF[part]}.{leaf}"


def to_hf_name_or_own(name: str) -> str:
    """``to_hf_name``, and the name itself where Hugging Face has none for it."""
    try:
        return to_hf_name(name)
    except (KeyError, ValueError):
        return name
