"""How far a model's predictions are from the source's, of which the last hidden states are remembered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import log_softmax

from quantize.source.causal import Causal
from quantize.source.whole import LOGIT_ROWS


class Divergence:
    """``causal`` with whatever weights it has now, beside its predictions with ``head``, the source's F32[vocab, hidden]."""

    def __init__(self, causal: Causal, head: torch.Tensor) -> None:
        self._causal, self._head = causal, head

    def of(self, last: torch.Tensor, taught: torch.Tensor, count: int, gradient: torch.Tensor | None) -> float:
        """Sum of KL(source, student) over tokens / ``count``; writes its gradient for ``last``, and adds the head's own.

        ``last``, ``taught``: the last hidden states of student and source, F32[batch, length, hidden].
        """
        total, width = 0.0, last.shape[-1]
        for start in range(0, last.shape[0] * last.shape[1], LOGIT_ROWS):
            rows = slice(start, start + LOGIT_ROWS)
            own, its = last.reshape(-1, width)[rows], taught.reshape(-1, width)[rows]
            own = own.detach().requires_grad_(gradient is not None)
            with torch.no_grad(), self._of_source():
                source = log_softmax(self._causal.logits(its), -1)
            logits = self._causal.logits(own)
            student = log_softmax(logits.detach(), -1)
            p = source.exp()
            total += float((p * (source - student)).sum())
            if gradient is not None:
                logits.backward((student.exp_() - p) / count)  # type: ignore[no-untyped-call]
                assert own.grad is not None
                gradient.reshape(-1, width)[rows] = own.grad
        return total / count

    @contextmanager
    def _of_source(self) -> Iterator[None]:
        """In the block the head is the source's."""
        parameter = self._causal.head
        put, parameter.data = parameter.data, self._head
        try:
            yield
        finally:
            parameter.data = put
