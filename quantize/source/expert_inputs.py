"""What the experts of a source see in torch, each of the tokens that are sent to it alone: for a graph that computes every expert
for every token, and throws most of it away."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch

from quantize.checkpoint import Checkpoint
from quantize.errors import CalibrationError
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

    @torch.no_grad()
    def of(self, names: Collection[str], unit: bool) -> list[Seen]:
        """Of those of ``names`` that see some tokens only; ``unit``: a token counts so much that its norm is 1."""
        by_key: dict[Weight, list[str]] = {}
        for name in names:
            by_key.setdefault(self._named.rows[name].keys[0], []).append(name)
        sums = {key: torch.zeros(key.shape[1], key.shape[1]) for key in by_key}
        counts = dict.fromkeys(by_key, 0)

        def see(weight: Weight | None, x: torch.Tensor, _: torch.Tensor) -> None:
            if weight is not None and weight in sums:
                flat = x.reshape(-1, x.shape[-1])
                norms = flat.norm(dim=1, keepdim=True)
                if not norms.isfinite().all():
                    raise CalibrationError(
                        f"{self._path}: {by_key[weight][0]}: its inputs on the calibration text overflow float32"
                    )
                flat = flat / norms.clamp_min(1e-20) if unit else flat
                sums[weight] += flat.T @ flat
                counts[weight] += len(flat)

        with self._named.causal.watched(see):
            for sequence in self._tokens:
                self._named.causal.hidden(torch.from_numpy(np.ascontiguousarray(sequence))[None])
        return [
            Seen(own, (sums[key] / max(1, counts[key])).numpy(), counts[key])
            for key, own in by_key.items()
            if counts[key] != self._tokens.size
        ]
