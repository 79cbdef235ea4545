"""The tensors that a config promises, and whether the headers keep the promise."""

from __future__ import annotations

from collections.abc import Mapping

from quantize.errors import CheckpointError
from quantize.model_config import EMBEDDING, HEAD, ModelConfig
from quantize.types import TensorSpec

BUFFERS = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")  # constants that old checkpoints saved; the model makes its own
# What a rotary scaling cannot be computed without; other kinds are left to the writers, which know what they can say.
ROPE_NUMBERS = {
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
SHOWN = 3  # names listed in a message


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the decoder in model order, an own head last."""
    hidden = config.hidden_size
    out: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for index in range(config.num_layers):
        out |= {f"model.layers.{index}.{name}": shape for name, shape in _layer_shapes(config).items()}
    out["model.norm.weight"] = (hidden,)
    out[HEAD] = (config.vocab_size, hidden)
    return out


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, ffn, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_rows, kv_rows = config.num_heads * head_dim, config.num_kv_heads * head_dim
    linears = {
        "self_attn.q_proj": (q_rows, hidden),
        "self_attn.k_proj": (kv_rows, hidden),
        "self_attn.v_proj": (kv_rows, hidden),
        "self_attn.o_proj": (hidden, q_rows),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    out: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
    for name, shape in linears.items():
        out[f"{name}.weight"] = shape
        if _has_bias(config, name):
            out[f"{name}.bias"] = shape[:1]
    if config.model_type == "qwen3":
        out |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    return out | {"post_attention_layernorm.weight": (hidden,)}


def _has_bias(config: ModelConfig, linear: str) -> bool:
    if config.model_type == "qwen2":
        return linear.endswith(("q_proj", "k_proj", "v_proj"))
    return bool(config.raw.get("attention_bias" if linear.startswith("self_attn") else "mlp_bias", False))


def check_config(config: ModelConfig, where: str) -> None:
    """Refuse what the decoders here do not compute. Raises CheckpointError."""
    raw = config.raw
    if raw.get("quantization_config"):
        raise CheckpointError(f"{where}: this checkpoint is quantized already; use the model that it was made from")
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise CheckpointError(f"{where}: hidden_act {raw['hidden_act']!r} is not supported; supported: silu")
    sizes = (config.hidden_size, config.intermediate_size, config.num_layers, config.max_position)
    if min(sizes) < 1:
        words = "hidden_size, intermediate_size, num_hidden_layers, max_position_embeddings"
        raise CheckpointError(f"{where}: {words} are {sizes}, and all must be positive; is this the model's own config.json?")
    _check_positions(config, where)
    if config.num_heads < 1 or config.num_kv_heads < 1 or config.num_heads % config.num_kv_heads or config.head_dim % 2:
        heads = f"{config.num_heads} heads, {config.num_kv_heads} key-value heads, head_dim {config.head_dim}"
        raise CheckpointError(f"{where}: {heads} do not make an attention layer; is this the model's own config.json?")


def _check_positions(config: ModelConfig, where: str) -> None:
    rope = config.rope_scaling or {}
    for settings in (config.raw, rope, config.raw.get("rope_parameters") or {}):
        if settings.get("partial_rotary_factor", 1) not in (None, 1):
            factor = settings["partial_rotary_factor"]
            raise CheckpointError(f"{where}: partial_rotary_factor {factor!r} is not supported: whole heads are rotated here")
    for key in ROPE_NUMBERS.get(config.rope_kind, ()):
        if not _is_number(rope.get(key)) or rope[key] <= 0:
            raise CheckpointError(
                f"{where}: rope scaling {config.rope_kind} needs {key}, which is {rope.get(key)!r}; compare it with the original"
            )
    for key in ("sliding_window", "max_window_layers"):
        if config.raw.get(key) is not None and not _is_number(config.raw[key]):
            raise CheckpointError(f"{where}: {key} is {config.raw[key]!r}, not a number; compare it with the original model's")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
    if HEAD not in found and config.raw.get("tie_word_embeddings") is False:
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
