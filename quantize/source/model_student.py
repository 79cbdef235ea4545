"""The source's network with other weights in it, and how far its predictions are from the source's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.checkpoint import checkpoint

from quantize.checkpoint import Checkpoint
from quantize.progress import track
from quantize.source.divergence import Divergence
from quantize.source.freed import return_freed
from quantize.source.named import named_model
from quantize.types import F32, I64

BATCH = 1  # sequences that go through the model together: what is kept for the way back outweighs the weights
FORGETFUL = 2  # one decoder block in so many keeps only its input for the way back, and runs again there


class ModelStudent:
    """The source over I64[sequences, length], remembered by its last hidden states; then whatever weights are put in it.

    Losses are the mean KL divergence from the source to the student, in nats per token. The whole model is in memory in
    float32, once for its weights and once for their gradients.
    """

    def __init__(self, source: Checkpoint, tokens: I64, split: bool = False) -> None:
        """``split``: the head is put apart from the embedding, though the source has one table."""
        self._named = named_model(source, tokens, paged=False, split=split)
        self._causal, self._learning = self._named.causal, set[str]()
        self._tokens = torch.from_numpy(np.ascontiguousarray(tokens))
        self._divergence = Divergence(self._causal, self._causal.head.detach().clone())  # the source's head, whatever is put
        for block in self._causal.blocks[::FORGETFUL]:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        with torch.no_grad():
            runs = track(range(0, len(tokens), BATCH), "running the source")
            self._taught = torch.cat([self._causal.hidden(self._tokens[start : start + BATCH]).half() for start in runs])

    @property
    def sequences(self) -> int:
        """How many there are to choose from."""
        return len(self._tokens)

    def holds(self, name: str) -> bool:
        """Whether ``put`` does anything with it."""
        return self._named.holds(name)

    def put(self, name: str, weight: F32, learns: bool) -> None:
        """Let F32[...] stand in for ``name``, Hugging Face row order; ``gradients`` covers what ``learns``.

        What is not found in torch's model stays there as it is.
        """
        self._named.put(name, weight, learns)
        if learns:
            self._learning.add(name)

    def loss(self, sequences: NDArray[np.intp]) -> float:
        """Mean loss over those sequences."""
        with torch.no_grad():
            return self._over(sequences, self._forward)

    def gradients(self, sequences: NDArray[np.intp]) -> dict[str, F32]:
        """Of the mean loss over those sequences, for every weight that learns."""
        self._over(sequences, self._backward)
        return self._named.take_gradients(self._learning)

    def _over(self, sequences: NDArray[np.intp], run: Callable[[torch.Tensor, torch.Tensor, int], float]) -> float:
        """Sum of ``run`` over batches of (last hidden states, the source's, all tokens that count)."""
        total, count = 0.0, len(sequences) * self._tokens.shape[1]
        for start in range(0, len(sequences), BATCH):
            rows = torch.from_numpy(sequences[start : start + BATCH])
            total += run(self._causal.hidden(self._tokens[rows]), self._taught[rows].float(), count)
        return_freed()
        return total

    def _forward(self, last: torch.Tensor, taught: torch.Tensor, count: int) -> float:
        return self._divergence.of(last, taught, count, None)

    def _backward(self, last: torch.Tensor, taught: torch.Tensor, count: int) -> float:
        gradient = torch.empty_like(last)
        loss = self._divergence.of(last.detach(), taught, count, gradient)
        last.backward(gradient)  # type: ignore[no-untyped-call]
        return loss
