"""The tensors that a config promises, and whether the headers keep the promise."""

from __future__ import annotations

from collections.abc import Mapping

from quantize.architecture.families import expected_shapes
from quantize.errors import CheckpointError, shown
from quantize.foreign import quantized_by
from quantize.model_config import CONFIG, HEAD, ModelConfig
from quantize.types import TensorSpec

BUFFERS = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")  # constants that old checkpoints saved; the model makes its own
# Keys of other decoders that change what is computed, and the values with which they do not. transformers' classes of the four
# families do not read most of them; a config.json that has one was written for other code.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "alibi": (False,),
    "attention_chunk_size": (0,),
    "attention_multiplier": (),
    "attn_logit_softcapping": (0,),
    "clip_qkv": (0,),
    "dim_model_base": (),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (0,),
    "is_causal": (True,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "no_rope_layers": ([],),
    "parallel_attn": (False,),
    "per_layer_config": ({},),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "rope_interleave": (False,),
    "rope_interleaved": (False,),
    "rotary_pct": (1,),
    "scale_depth": (),
    "scale_emb": (1,),
    "text_config": ({},),
    "use_bidirectional_attention": (False,),
}
SHOWN = 3  # names listed in a message


def check_config(config: ModelConfig, where: str) -> None:
    """Refuse what the decoders here do not compute. Raises CheckpointError."""
    raw = config.raw
    by = quantized_by(raw)
    if by is not None:
        named = f" (by {shown(by)})" if by else ""
        raise CheckpointError(f"{where}: this checkpoint is quantized already{named}; use the model that it was made from")
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise CONFIG.refused(where, f"hidden_act {shown(raw['hidden_act'])!r} is not supported; supported: silu")
    for key, values in NEUTRAL.items():
        if raw.get(key) is not None and raw[key] not in values:
            raise CONFIG.refused(
                where, f"{key} {shown(raw[key])} is not supported: a {config.model_type} decoder has no such thing"
            )
    uneven = config.model_type == "llama" and config.hidden_size % config.num_heads  # transformers refuses it
    if config.num_heads % config.num_kv_heads or config.head_dim < 1 or config.head_dim % 2 or uneven:
        heads = f"hidden_size {config.hidden_size}, {config.num_heads} heads, {config.num_kv_heads} key-value heads"
        raise CheckpointError(
            f"{where}: {heads}, head_dim {config.head_dim} do not make an attention layer; is this the model's own config.json?"
        )


def check_specs(found: Mapping[str, TensorSpec], config: ModelConfig, where: str) -> dict[str, TensorSpec]:
    """The found specs in model order, without buffers. Raises CheckpointError for missing, unexpected or misshapen tensors."""
    if config.num_layers > len(found):  # before so many names are made
        raise CheckpointError(
            f"{where}: num_hidden_layers (a GGUF's block_count) is {config.num_layers}, and {len(found)} tensors are all "
            "that is there; download the whole model again"
        )
    expected = expected_shapes(config)
    unexpected = [name for name in found if name not in expected and not name.endswith(BUFFERS)]
    missing = [name for name in expected if name not in found and name != HEAD]
    if HEAD not in found and not config.tie_word_embeddings:
        missing.append(HEAD)
    if missing:
        raise CheckpointError(f"{where}: {_listed(missing)} missing; download the whole model again")
    if unexpected:
        raise CheckpointError(
            f"{where}: {_listed(unexpected)} not part of a {config.model_type} decoder; is config.json its own?"
        )
    specs = {name: found[name] for name in expected if name in found}
    for name, spec in specs.items():
        if spec.shape != expected[name]:
            raise CheckpointError(f"{where}: {name} has shape {spec.shape}, config.json says {expected[name]}; the two differ")
    return specs


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(sorted(names)[:SHOWN])}{more} {'is' if len(names) == 1 else 'are'}"
