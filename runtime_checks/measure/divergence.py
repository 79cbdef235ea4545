"""How far one model's next-token distributions lie from another's, position by position, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantize.types import F32, I64

F64 = NDArray[np.float64]
ROWS = 32  # rows of logits that are widened to float64 at a time: 12 MB at 49,152 tokens of vocabulary


@dataclass(frozen=True, eq=False)
class Scores:
    """One entry per scored position, all [n].

    ``base_nll`` and ``nll``: negative log likelihood of the text's next token under base and other; ``kl``: KL(base || other);
    ``agree``: both put the same token first; ``margin``: log-probability gap between base's two best tokens.
    """

    base_nll: F64
    nll: F64
    kl: F64
    agree: NDArray[np.bool_]
    margin: F64


def compare(base: F32, other: F32, labels: I64) -> Scores:
    """Score logits F32[n, vocab] of two models against the tokens I64[n] that follow. A logit that is not finite gives nan."""
    if base.shape != other.shape:
        raise AssertionError(f"logits {other.shape} against {base.shape}: pad or cut them to one vocabulary first")
    parts = [slice(start, start + ROWS) for start in range(0, len(labels), ROWS)]
    return join([_compare(base[part], other[part], labels[part]) for part in parts])


def join(parts: Sequence[Scores]) -> Scores:
    """The scores of all parts, in order."""
    return Scores(
        base_nll=np.concatenate([part.base_nll for part in parts]),
        nll=np.concatenate([part.nll for part in parts]),
        kl=np.concatenate([part.kl for part in parts]),
        agree=np.concatenate([part.agree for part in parts]),
        margin=np.concatenate([part.margin for part in parts]),
    )


def _compare(base: F32, other: F32, labels: I64) -> Scores:
    p, q = _log_softmax(base), _log_softmax(other)
    row = np.arange(len(labels))
    second, first = np.partition(p, -2, axis=-1)[:, -2:].T
    return Scores(
        base_nll=-p[row, labels],
        nll=-q[row, labels],
        kl=np.einsum("rv,rv->r", np.exp(p), p - q),
        agree=base.argmax(-1) == other.argmax(-1),
        margin=first - second,
    )


def _log_softmax(logits: F32) -> F64:
    shifted: F64 = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted
