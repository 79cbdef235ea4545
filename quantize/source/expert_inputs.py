"""What the experts of a source see in torch, each of the tokens that are sent to it alone: for a graph that computes every expert
for every token, and throws most of it away, or that does all of it in one node."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import torch

from quantize.checkpoint import Checkpoint
from quantize.errors import CalibrationError
from quantize.moments import Moments
from quantize.source.causal import Weight
from quantize.source.named import named_model
from quantize.types import F32, I64


class Seen(NamedTuple):
    """Matrices ``names`` that see the same input: F32[IC, IC], the mean of x xT over ``tokens`` of them; zeros of none."""

    names: list[str]
    moment: F32
    tokens: int


class ExpertInputs:
    """Over I64[sequences, length] ``tokens``. The source is in memory as ``named_model`` has it. Raises as that."""

    def __init__(self, source: Checkpoint, tokens: I64) -> None:
        self._named, self._tokens, self._path = named_model(source, tokens), tokens, source.path

    def of(self, names: Collection[str], unit: bool) -> tuple[list[Seen], dict[str, Moments]]:
        """Of those of ``names`` that see some tokens only, and of those that are stacks; ``unit``: a token counts so much that
        its norm is 1."""
        by_key: dict[Weight, list[str]] = {}
        stacks = {name: [rows.keys[0] for rows in self._named.experts[name]] for name in names if name in self._named.experts}
        for name in names:
            if name not in stacks:
                by_key.setdefault(self._named.rows[name].keys[0], []).append(name)
        moments = self._moments({*by_key, *(key for keys in stacks.values() for key in keys)}, unit)
        some = [Seen(own, *moments[key]) for key, own in by_key.items() if moments[key][1] != self._tokens.size]
        return some, {name: _stacked(moments[key] for key in keys) for name, keys in stacks.items()}

    @torch.no_grad()
    def _moments(self, keys: Collection[Weight], unit: bool) -> dict[Weight, tuple[F32, int]]:
        """The mean of x xT, and over how many tokens."""
        sums, counts = {key: torch.zeros(key.shape[1], key.shape[1]) for key in keys}, dict.fromkeys(keys, 0)

        def see(weight: Weight | None, x: torch.Tensor, _: torch.Tensor) -> None:
            if weight is not None and weight in sums:
                flat = x.reshape(-1, x.shape[-1])
                norms = flat.norm(dim=1, keepdim=True)
                if not norms.isfinite().all():
                    raise CalibrationError(
                        f"{self._path}: {weight.parameter}: its inputs on the calibration text overflow float32"
                    )
                flat = flat / norms.clamp_min(1e-20) if unit else flat
                sums[weight] += flat.T @ flat
                counts[weight] += len(flat)

        with self._named.causal.watched(see):
            for sequence in self._tokens:
                self._named.causal.hidden(torch.from_numpy(np.ascontiguousarray(sequence))[None])
        return {key: (sums[key].div_(max(1, counts[key])).numpy(), counts[key]) for key in keys}


def _stacked(experts: Iterable[tuple[F32, int]]) -> Moments:
    squares, tokens = zip(*experts, strict=True)
    return Moments(np.stack(squares), np.array(tokens))
