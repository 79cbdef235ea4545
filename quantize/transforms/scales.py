"""Candidates for the sizes of a block's channels, after AWQ (arXiv 2306.00978, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.types import F32

F64 = NDArray[np.float64]

# (a, b): a channel's weights grow with the root mean square of its activations to the power a, and fall with their norm to b.
# Larger powers, AWQ's up to 1, lost on every grid: a fit that knows the importance has half of the gain already.
POWERS = ((0.125, 0.0), (0.25, 0.0), (0.125, 0.5), (0.25, 0.5), (0.0, 0.5))
AWQ_POINTS = 20  # powers from 0 up to, but without, 1
LARGEST = 64.0  # no channel is made larger or smaller than by this, dead ones included
TINY = 1e-12


Factors = Callable[[F32, list[F32]], Iterator[F32]]


def channel_factors(importance: F32, weights: list[F32]) -> Iterator[F32]:
    """Factors F32[n] of the activations, their geometric mean 1, for channels that ``weights`` F32[OC, n] read.

    ``importance`` F32[n]: the channels' mean squares.
    """
    rms, norm = _sizes(importance), column_norms(weights)
    for activation, own in POWERS:
        yield bounded(norm**own / rms**activation)


def awq_factors(importance: F32, weights: list[F32]) -> Iterator[F32]:
    """The same by activations alone, to every power that AWQ tries but 0, which is no change."""
    rms = _sizes(importance)
    for power in np.arange(1, AWQ_POINTS) / AWQ_POINTS:
        yield bounded(1 / rms**power)


def _sizes(importance: F32) -> F64:
    """F64[n]: root mean squares, above 0."""
    out: F64 = np.sqrt(np.maximum(importance.astype(np.float64), TINY * importance.max() + np.finfo(np.float32).tiny))
    return out


def column_norms(weights: list[F32]) -> F32:
    """F32[n]: norms of the columns of all ``weights`` F32[OC, n] together, above 0."""
    norms = np.sqrt(sum(np.square(weight, dtype=np.float64).sum(0) for weight in weights))
    out: F32 = np.maximum(norms, TINY * norms.max() + np.finfo(np.float32).tiny)
    return out


def bounded(factors: NDArray[np.floating[Any]]) -> F32:
    """The same, around a geometric mean of 1 and within LARGEST of it."""
    centred = factors / np.exp(np.log(factors).mean())
    out: F32 = np.clip(centred, 1 / LARGEST, LARGEST).astype(np.float32)
    return out
