"""The source one decoder block at a time: what its linears see, and what their errors do to the scope around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from quantize.checkpoint import Checkpoint
from quantize.errors import CalibrationError
from quantize.inputs import Sampler
from quantize.model_config import EMBEDDING, block_prefix
from quantize.source.block_student import BlockStudent, output_costs
from quantize.source.discover import Anatomy, anatomy_of
from quantize.source.freed import return_freed
from quantize.source.whole import hidden_of, put, skeleton
from quantize.types import F32, I64, Curvature, InputStats

BATCH = 4  # sequences that go through a block together


@dataclass(eq=False)
class BlockRun:
    """One decoder block of the source while calibration text passes through it."""

    index: int
    stats: dict[str, InputStats]  # by weight name; linears that share an input share the Hessian
    sites: tuple[tuple[str, ...], ...]  # weight names that see the same input
    student: BlockStudent | None  # what it is left with at the end counts as this block for the next one's
    _block: Any
    _prefix: str
    _scopes: Mapping[str, str]
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
        linear: nn.Linear = self._block.get_submodule(self._inner(name))
        return linear

    def _inner(self, name: str) -> str:
        return name.removeprefix(self._prefix).removesuffix(".weight")

    def _scope_outputs(self, name: str) -> list[torch.Tensor]:
        scope = self._scopes[self._inner(name)]
        module = self._block.get_submodule(scope)
        outputs = [module(*args, **kwargs) for args, kwargs in self._scope_calls[scope]]
        return [hidden_of(output) for output in outputs]


def walk_blocks(
    source: Checkpoint, tokens: I64, token_weight: str | Curvature, scope_sequences: int, taught: bool = False
) -> Iterator[BlockRun]:
    """Pass I64[sequences, length] through the source, one decoder block in memory at a time.

    Yields each block after its statistics are complete; the stream between blocks stays full precision. ``token_weight``:
    "unit" scales every token to unit norm before it enters a Hessian, so that a few massive tokens cannot own it; "none"
    takes it as it is; a Curvature of the same tokens weighs it by what its errors cost, and gives every linear its rows' weights.
    ``scope_sequences``: how many sequences judge scope losses (0: no inputs are kept). ``taught``: each block has a student.
    Raises CalibrationError for tokens that the model does not have, and for activations that overflow.
    """
    return_freed()  # the whole model, if curvature was measured
    model = skeleton(source.config, tied=True)
    rotary = type(model.model.rotary_emb)(model.config)
    hidden = torch.from_numpy(_embed(source, tokens))
    positions = rotary(hidden[:1], torch.arange(tokens.shape[1])[None])
    changed = hidden if taught else None
    for index, block in enumerate(model.model.layers):
        prefix = block_prefix(index)
        anatomy = anatomy_of(block, hidden.shape[-1], positions)
        for name, parameter in list(block.named_parameters()):
            put(block, name, source.read(prefix + name), parameter.shape)
        block.eval()
        recorder = _Recorder(block, prefix, token_weight, scope_sequences, anatomy)
        hidden = recorder.run(hidden, positions)
        student = None
        if changed is not None:
            costs = output_costs(token_weight, f"{prefix}{anatomy.output}.weight", hidden)
            student = BlockStudent(block, prefix, positions, changed, hidden, costs)
        sites = tuple(tuple(f"{prefix}{name}.weight" for name in names) for names in anatomy.sites)
        yield BlockRun(index, recorder.stats(), sites, student, block, prefix, anatomy.scopes, recorder.scope_calls)
        if student is not None:
            changed = student.outputs()
        model.model.layers[index] = nn.Identity()  # frees the block's weights


def check_ids(source: Checkpoint, tokens: I64) -> None:
    """Raises CalibrationError for tokens that the model does not have."""
    if tokens.max() >= source.config.vocab_size:
        raise CalibrationError(
            f"{source.path}: token {tokens.max()} has no row in the embedding of {source.config.vocab_size}; "
            "the tokenizer is another model's"
        )


def _embed(source: Checkpoint, tokens: I64) -> F32:
    """F32[sequences, length, hidden]; of the embedding only the rows that occur are read."""
    check_ids(source, tokens)
    ids, places = np.unique(tokens, return_inverse=True)
    rows = np.concatenate([source.read_rows(EMBEDDING, int(token), int(token) + 1) for token in ids])
    return rows[places].reshape(*tokens.shape, -1)


class _Recorder:
    """Hooks that gather second moments of each input site and the inputs of each scope."""

    def __init__(self, block: Any, prefix: str, token_weight: str | Curvature, wanted: int, anatomy: Anatomy) -> None:  # noqa: ANN401
        self._block, self._prefix, self._token_weight, self._wanted = block, prefix, token_weight, wanted
        self._anatomy = anatomy
        self._total = 0
        self._moments: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, int] = {}
        self._seen: dict[str, Sampler] = {}
        self.scope_calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    @torch.inference_mode()
    def run(self, hidden: torch.Tensor, positions: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The block's output for F32[sequences, length, hidden]."""
        self._total = hidden.shape[0] * hidden.shape[1]
        firsts = [names[0] for names in self._anatomy.sites]
        hooks = [self._block.get_submodule(site).register_forward_pre_hook(self._add_moment(site)) for site in firsts]
        outputs = []
        for start in range(0, len(hidden), BATCH):
            keep = self._keep_scopes() if start < self._wanted else []
            outputs.append(hidden_of(self._block(hidden[start : start + BATCH], position_embeddings=positions)))
            for hook in keep:
                hook.remove()
        for hook in hooks:
            hook.remove()
        return torch.cat(outputs)

    def stats(self) -> dict[str, InputStats]:
        """By weight name: E[a x xT] of its input, which those of one site share."""
        out = {}
        for linears in self._anatomy.sites:
            site = linears[0]
            moment, tokens = (self._moments[site] / self._tokens[site]).numpy(), self._tokens[site]
            inputs = self._seen[site].inputs()
            for linear in linears:
                name = f"{self._prefix}{linear}.weight"
                row_weight = self._token_weight.rows[name] if isinstance(self._token_weight, Curvature) else None
                out[name] = InputStats(moment, tokens, row_weight, inputs=inputs)
        return out

    def _weights(self, site: str, seen: int, norms: torch.Tensor) -> torch.Tensor:
        """Of tokens from ``seen`` on, [tokens, 1]; ``norms`` are theirs."""
        if isinstance(self._token_weight, Curvature):
            return torch.from_numpy(self._token_weight.tokens[f"{self._prefix}{site}.weight"][seen : seen + len(norms), None])
        return norms.clamp_min(1e-20).reciprocal().square() if self._token_weight == "unit" else torch.ones_like(norms)

    def _add_moment(self, site: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            norms = x.norm(dim=1, keepdim=True)
            if not norms.isfinite().all():
                raise CalibrationError(
                    f"{self._prefix}{site}: its inputs on the calibration text overflow float32; does the source itself run?"
                )
            seen = self._tokens.get(site, 0)
            weights = self._weights(site, seen, norms)
            weighted = x * weights
            self._seen.setdefault(site, Sampler(self._total)).see(x.numpy(), weights[:, 0].numpy())
            self._moments[site] = self._moments.get(site, torch.zeros(x.shape[1], x.shape[1])) + x.T @ weighted
            self._tokens[site] = seen + len(x)

        return hook

    def _keep_scopes(self) -> list[Any]:
        hooks = []
        for scope in dict.fromkeys(self._anatomy.scopes.values()):
            calls = self.scope_calls.setdefault(scope, [])
            module = self._block.get_submodule(scope)
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _module, args, kwargs, calls=calls: calls.append((args, kwargs)), with_kwargs=True
                )
            )
        return hooks
