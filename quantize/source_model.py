"""The only file that runs torch: the source model as a whole, or one decoder layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quantize.checkpoint import Checkpoint
from quantize.errors import CalibrationError
from quantize.model_config import EMBEDDING, HEAD, ModelConfig
from quantize.types import F32, LayerStats

Read = Callable[[str], F32]
I64 = NDArray[np.int64]
BATCH = 4  # sequences that go through a layer together

# Linears that see the same input, under the one whose input is captured; and the module whose output judges each (its scope).
INPUT_SITES = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
SCOPES = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "gate_proj": "mlp", "up_proj": "mlp"}


def build_model(config: ModelConfig, read: Read, tied: bool) -> nn.Module:
    """The whole model in float32, in eval mode; ``read`` gives each tensor by its Hugging Face name and row order."""
    model = _skeleton(config, tied)
    for name, parameter in list(model.named_parameters()):
        if not (tied and name == HEAD):
            _put(model, name, read(name), parameter.shape)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    built: nn.Module = model.eval()
    return built


@torch.inference_mode()
def logits(model: nn.Module, tokens: I64) -> F32:
    """Next-token logits F32[batch, length, vocab] of I64[batch, length]."""
    out: F32 = model(torch.from_numpy(np.ascontiguousarray(tokens)), use_cache=False).logits.numpy()
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


@dataclass(eq=False)
class LayerRun:
    """One decoder layer of the source while calibration text passes through it."""

    index: int
    stats: dict[str, LayerStats]  # by weight name; linears that share an input share the object
    _layer: Any
    _scope_calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]]  # inputs of attention, MLP, o and down

    @torch.inference_mode()
    def scope_loss(self, name: str, candidates: list[F32]) -> list[float]:
        """Mean squared change of the scope's output when F32[OC, IC] ``candidates`` stand in for ``name``.

        The scope is the attention or MLP that the linear sits in, or the linear itself for o and down; the reference
        is its output with the weights as they are now, siblings quantized before included (arXiv 2309.15531, 4.2).
        """
        linear = self._linear(name)
        original = linear.weight.data
        reference = self._scope_outputs(name)
        losses = []
        for candidate in candidates:
            linear.weight.data = torch.from_numpy(np.array(candidate, np.float32))
            pairs = zip(self._scope_outputs(name), reference, strict=True)
            losses.append(float(np.mean([(out - ref).square().mean().item() for out, ref in pairs])))
            linear.weight.data = original
        return losses

    def commit(self, name: str, weight: F32) -> None:
        """From now on ``name`` counts as quantized to F32[OC, IC] in its siblings' scope losses."""
        self._linear(name).weight.data = torch.from_numpy(np.array(weight, np.float32))

    def _linear(self, name: str) -> nn.Linear:
        linear: nn.Linear = self._layer.get_submodule(name.split(".", 3)[3].removesuffix(".weight"))
        return linear

    def _scope_outputs(self, name: str) -> list[torch.Tensor]:
        part, linear = name.removesuffix(".weight").split(".")[-2:]
        scope = SCOPES.get(linear, f"{part}.{linear}")
        module = self._layer.get_submodule(scope)
        outputs = [module(*args, **kwargs) for args, kwargs in self._scope_calls[scope]]
        return [out[0] if isinstance(out, tuple) else out for out in outputs]


def walk_layers(source: Checkpoint, tokens: I64, unit_norm: bool, scope_sequences: int) -> Iterator[LayerRun]:
    """Pass I64[sequences, length] through the source, one decoder layer in memory at a time.

    Yields each layer after its statistics are complete; the stream between layers stays full precision. ``unit_norm``
    scales every token to unit norm before it enters a Hessian, so that a few massive tokens cannot own it.
    ``scope_sequences``: how many sequences judge scope losses (0: no inputs are kept). Raises CalibrationError for tokens
    that the model does not have, and for activations that overflow.
    """
    model = _skeleton(source.config, tied=True)
    rotary = type(model.model.rotary_emb)(model.config)
    hidden = torch.from_numpy(_embed(source, tokens))
    positions = rotary(hidden[:1], torch.arange(tokens.shape[1])[None])
    for index, layer in enumerate(model.model.layers):
        prefix = f"model.layers.{index}."
        for name, parameter in list(layer.named_parameters()):
            _put(layer, name, source.read(prefix + name), parameter.shape)
        layer.eval()
        recorder = _Recorder(layer, prefix, unit_norm, scope_sequences)
        hidden = recorder.run(hidden, positions)
        stats = {f"{prefix}{linear}.weight": value for linear, value in recorder.stats().items()}
        yield LayerRun(index, stats, layer, recorder.scope_calls)
        model.model.layers[index] = nn.Identity()  # frees the layer's weights


def _embed(source: Checkpoint, tokens: I64) -> F32:
    """F32[sequences, length, hidden]; of the embedding only the rows that occur are read."""
    ids, places = np.unique(tokens, return_inverse=True)
    if ids[-1] >= source.config.vocab_size:
        raise CalibrationError(
            f"{source.path}: token {ids[-1]} has no row in the embedding of {source.config.vocab_size}; "
            "the tokenizer is another model's"
        )
    rows = np.concatenate([source.read_rows(EMBEDDING, int(token), int(token) + 1) for token in ids])
    return rows[places].reshape(*tokens.shape, -1)


class _Recorder:
    """Hooks that gather second moments of each input site and the inputs of each scope."""

    def __init__(self, layer: Any, prefix: str, unit_norm: bool, scope_sequences: int) -> None:  # noqa: ANN401 - transformers'
        self._layer, self._prefix, self._unit_norm, self._wanted = layer, prefix, unit_norm, scope_sequences
        self._moments: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, int] = {}
        self.scope_calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    @torch.inference_mode()
    def run(self, hidden: torch.Tensor, positions: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The layer's output for F32[sequences, length, hidden]."""
        hooks = [self._layer.get_submodule(site).register_forward_pre_hook(self._add_moment(site)) for site in INPUT_SITES]
        outputs = []
        for start in range(0, len(hidden), BATCH):
            keep = self._keep_scopes() if start < self._wanted else []
            out = self._layer(hidden[start : start + BATCH], position_embeddings=positions)
            outputs.append(out[0] if isinstance(out, tuple) else out)
            for hook in keep:
                hook.remove()
        for hook in hooks:
            hook.remove()
        return torch.cat(outputs)

    def stats(self) -> dict[str, LayerStats]:
        """Per linear of the layer: E[x xT] of its input."""
        out = {}
        for site, linears in INPUT_SITES.items():
            moment = LayerStats((self._moments[site] / self._tokens[site]).numpy(), self._tokens[site])
            out.update(dict.fromkeys(linears, moment))
        return out

    def _add_moment(self, site: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            norms = x.norm(dim=1, keepdim=True)
            if not norms.isfinite().all():
                raise CalibrationError(
                    f"{self._prefix}{site}: its inputs on the calibration text overflow float32; does the source itself run?"
                )
            if self._unit_norm:
                x = x / norms.clamp_min(1e-20)
            self._moments[site] = self._moments.get(site, torch.zeros(x.shape[1], x.shape[1])) + x.T @ x
            self._tokens[site] = self._tokens.get(site, 0) + len(x)

        return hook

    def _keep_scopes(self) -> list[Any]:
        hooks = []
        for scope in ("self_attn", "mlp", "self_attn.o_proj", "mlp.down_proj"):
            calls = self.scope_calls.setdefault(scope, [])
            module = self._layer.get_submodule(scope)
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _module, args, kwargs, calls=calls: calls.append((args, kwargs)), with_kwargs=True
                )
            )
        return hooks


def _skeleton(config: ModelConfig, tied: bool) -> Any:  # noqa: ANN401 - transformers has no types
    """The transformers model without memory for its weights; tied as the tensors are, whatever config.json says."""
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = {key: value for key, value in config.raw.items() if key not in ("model_type", "auto_map", "quantization_config")}
    raw["tie_word_embeddings"] = tied
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config.model_type, **raw), dtype=torch.float32, attn_implementation="sdpa"
        )


def _put(module: Any, name: str, value: F32, shape: torch.Size) -> None:  # noqa: ANN401
    assert value.shape == tuple(shape), f"{name}: {value.shape} where the model has {tuple(shape)}"
    owner, _, leaf = name.rpartition(".")
    weight = torch.from_numpy(np.array(value, np.float32))
    setattr(module.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))
