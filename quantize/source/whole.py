"""The source model as a whole, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from quantize.model_config import HEAD, ModelConfig, ModelSizes, named
from quantize.rotary import ROPE_KEYS, rope_settings
from quantize.types import F32, I64

Read = Callable[[str], F32]
LOGIT_ROWS = 128  # tokens whose logits, a whole vocabulary each, are in memory at a time


def build_model(config: ModelSizes, read: Read, tied: bool) -> nn.Module:
    """The whole model in float32, in eval mode; ``read`` gives each tensor by its Hugging Face name and row order."""
    model = skeleton(config, tied)
    for name, parameter in list(model.named_parameters()):
        if not (tied and name == HEAD):
            put(model, name, read(name), parameter.shape)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    built: nn.Module = model.eval()
    return built


@torch.inference_mode()
def logits(model: nn.Module, tokens: I64, skip: int = 0) -> F32:
    """Next-token logits F32[batch, length - skip, vocab] of I64[batch, length], after each token but the first ``skip``."""
    ids, kept = torch.from_numpy(np.ascontiguousarray(tokens)), tokens.shape[1] - skip
    out: F32 = model(ids, use_cache=False, logits_to_keep=kept).logits.numpy()
    return out


@torch.inference_mode()
def greedy(model: nn.Module, tokens: I64, count: int) -> list[int]:
    """The ``count`` most likely next tokens after I64[length], one at a time."""
    out, ids, cache = list[int](), torch.from_numpy(np.ascontiguousarray(tokens))[None], None
    for _ in range(count):
        result = model(ids, past_key_values=cache, use_cache=True)
        cache, ids = result.past_key_values, result.logits[:, -1:].argmax(-1)
        out.append(int(ids))
    return out


def skeleton(sizes: ModelSizes, tied: bool) -> Any:  # noqa: ANN401 - transformers has no types
    """The transformers model without memory for its weights; tied as the tensors are, whatever config.json says.

    Raises CheckpointError for a decoder that is not known by name.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = named(sizes)

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config.model_type, **_keys(config), tie_word_embeddings=tied),
            dtype=torch.float32,
            attn_implementation="sdpa",
        )


def _keys(config: ModelConfig) -> dict[str, Any]:
    """What transformers' config class is made of: checked sizes, and as config.json has them the keys of a scaling and a window.

    Nothing else goes in: its class refuses more than its model minds, and ids that no text here needs.
    """
    raw = config.raw
    windows = () if config.model_type == "llama" else ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
    out = {key: raw[key] for key in windows if key in raw and (key == "sliding_window" or raw[key] is not None)}
    out |= {key: raw[key] for key in ("rope_theta", "pad_token_id") if key in raw}
    if raw.get("original_max_position_embeddings") is not None:
        out["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    key, rope = rope_settings(raw)
    return out | {
        key: {name: value for name, value in rope.items() if name in ROPE_KEYS},  # a copy: transformers writes into it
        **config.sizes,
        "max_position_embeddings": config.max_position,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


@torch.inference_mode()
def rotary_tables(config: ModelConfig, positions: int) -> tuple[F32, F32]:
    """Cosines and sines of the rotary embedding, F32[positions, head_dim / 2] each, as transformers computes them."""
    model = skeleton(config, tied=True)
    rotary = type(model.model.rotary_emb)(model.config)
    tables = rotary(torch.zeros(1, 1), torch.arange(positions)[None])
    cos, sin = (table[0, :, : config.head_dim // 2].numpy() for table in tables)
    return cos, sin


def hidden_of(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What a decoder block or a part of it gives to the next one; attention gives its weights beside it."""
    return output[0] if isinstance(output, tuple) else output


def change(parameter: nn.Parameter, weight: F32, learns: bool) -> None:
    """Copy F32[...] into ``parameter``; it asks for a gradient if it ``learns``."""
    assert weight.shape == tuple(parameter.shape), f"{weight.shape} where the model has {tuple(parameter.shape)}"
    np.copyto(parameter.data.numpy(), weight)
    parameter.requires_grad_(learns)


def take_gradients(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, F32]:
    """Those that there are, by name; the parameters have none afterwards."""
    found = dict[str, F32]()
    for name, parameter in parameters:
        if parameter.grad is not None:
            found[name], parameter.grad = parameter.grad.numpy(), None
    return found


def put(module: Any, name: str, value: F32, shape: torch.Size) -> None:  # noqa: ANN401
    """Give ``module`` a copy of the weight F32[shape] under its dotted name; it asks for no gradient."""
    assert value.shape == tuple(shape), f"{name}: {value.shape} where the model has {tuple(shape)}"
    owner, _, leaf = name.rpartition(".")
    weight = torch.from_numpy(np.array(value, np.float32))
    setattr(module.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))
