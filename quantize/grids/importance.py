"""What a search is told that each weight of a block matters; where nothing is known to matter, something is made up.

An importance of 0 says only that the calibration text never woke a channel. A sum that such weights do not enter says nothing
of their scale, and one that they enter by less than float32's resolution says what rounding errors say. So they count a
little: too little to be felt by the others, enough to choose among the fits that are equally good for these.
"""

from __future__ import annotations

import numpy as np

from quantize.types import F32, Array

UNSEEN = 2.0**-24  # of the mean of its group: what float32 sums no longer hold
UNSEEN_GROUP = 2.0**-30  # of the mean of its block: squared, and times a share, it is still above least_squares' TINY
SHARE = 2.0**-12  # of a group's signal: what its unseen weights count together, and no more than that of its mean each
REACH = 16.0  # an unseen group may stretch a super-block's factors that far beyond the largest group that matters


def weighed(x: F32, importance: F32) -> tuple[F32, F32]:
    """(x, w) for a search, F32[group, groups, n] both: w has a mean of 1 in each block, so that no product underflows.

    Unseen weights of a group share in w, an unseen group gets a small even w, an unseen block 1. x changes only in an unseen
    group that is far larger than those that matter: it is shrunk, or its scale would leave no steps for theirs.
    """
    mean = importance.mean((0, 1), dtype=np.float64)
    w = np.where(mean > 0, importance / np.where(mean > 0, mean, 1), 1).astype(np.float32)
    level = w.mean(0)
    unseen, empty = w < np.float32(UNSEEN) * level, level < UNSEEN_GROUP
    if unseen.any():
        unseen &= x != 0  # the filling of a ragged block is no weight
        w = np.where(unseen, _shared(x, w, unseen, 0), w)
    if empty.any():
        x = x * _shrinking(x, empty)
        w = np.where(empty, _shared(x, w, np.broadcast_to(empty, w.shape), (0, 1)), w)
    return x, w


def felt(importance: F32) -> F32:
    """With a mean of 1 along the last axis; what does not matter counts a little."""
    mean = importance.mean(-1, keepdims=True, dtype=np.float64)
    felt: F32 = np.where(mean > 0, importance / np.where(mean > 0, mean, 1), 1).astype(np.float32)
    return np.maximum(felt, np.float32(SHARE))


def seen(importance: F32) -> Array:
    """Of each input channel, bool[IC], whether an error there is felt at all; ``importance`` F32[IC] is diag(H).

    One that is not could take any value to mend what others lose on the calibration text, and would, as it costs nothing.
    """
    felt: Array = importance > max(UNSEEN * importance.mean(dtype=np.float64), np.finfo(np.float32).tiny)
    return felt


def _shared(x: F32, w: F32, unseen: Array, axes: int | tuple[int, ...]) -> F32:
    """What each unseen weight counts in the sums over ``axes``."""
    square = np.square(x)
    signal, other = (w * square).sum(axes, where=~unseen), (unseen * square).sum(axes)
    level = w.mean(axes)
    louder = (signal > 0) & (level * other > signal)
    counted = np.where(louder, signal / np.where(louder, other, 1), level)
    out: F32 = np.float32(SHARE) * counted.astype(np.float32)
    return out


def _shrinking(x: F32, empty: Array) -> F32:
    """Factors F32[groups, n], at most 1, and 1 for a group that is not empty."""
    largest = np.abs(x).max(0)
    limit = REACH * np.where(empty, 0, largest).max(0)
    too_large = empty & (largest > limit) & (limit > 0)
    factors: F32 = np.where(too_large, limit / np.where(too_large, largest, 1), 1).astype(np.float32)
    return factors
