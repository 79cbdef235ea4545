"""A turn under which no channel of an input is much louder than the others, found on a sample of it (DuQuant, arXiv 2406.01721).

::

    first     spreads the outliers of all blocks of channels: one matrix for all of them
    order     deals the channels to the blocks from the loudest on, to and fro, so that no block has more of them
    second    spreads what is left

Both matrices are products of steps. Each spreads the loudest channel of a block evenly, 1 / sqrt(n) of it in each of n channels,
and leads whatever is orthogonal to it anywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantize.block_turn import BlockTurn, in_blocks
from quantize.turn import hadamard
from quantize.types import F32

STEPS = 256
Index = NDArray[np.intp]
F64 = NDArray[np.float64]


def spreading_turn(sample: F32, size: int, seed: int, site: str = "") -> BlockTurn:
    """Of F32[tokens, IC], in blocks of ``size`` channels, a power of two that divides IC."""
    rng = np.random.default_rng(seed)
    first = spread(sample.reshape(-1, size), rng)
    once = in_blocks(sample, first)
    order = zigzag(np.abs(once).max(0), size)
    second = spread(once[:, order].reshape(-1, size), rng)
    return BlockTurn(first, second, order, site)


def spread(values: F32, rng: np.random.Generator) -> F32:
    """R F32[n, n], orthogonal: of F32[m, n] values @ R.T, the peak is as low as any of STEPS steps leaves it, or none does."""
    turn = best = np.eye(values.shape[1])
    now, least = values, peak(values)
    for _ in range(STEPS):
        turn = flattened(turn, loudest(now), rng)
        now = values @ turn.astype(np.float32)
        if (found := peak(now)) < least:
            best, least = turn, found
    return np.ascontiguousarray(best.T, dtype=np.float32)


def peak(values: F32) -> float:
    """The largest of them less the smallest."""
    return float(values.max()) - float(values.min())


def loudest(values: F32) -> int:
    """The column of F32[m, n] that has the largest value of either sign."""
    return int(np.maximum(values.max(0), -values.min(0)).argmax())


def flattened(turn: F64, channel: int, rng: np.random.Generator) -> F64:
    """F64[n, n] such that values @ it has in each column 1 / sqrt(n) of what ``channel`` of values @ ``turn`` holds, and of the
    others what ``rng`` says."""
    size = len(turn)
    inner, upper = np.linalg.qr(rng.standard_normal((size - 1, size - 1)))
    base = hadamard(size) / np.sqrt(size)  # whose first row is uniform; a random part to its left keeps it so
    base[1:] = (inner * np.sign(np.diag(upper))) @ base[1:]
    swapped = turn.copy()
    swapped[:, [0, channel]] = turn[:, [channel, 0]]
    out: F64 = swapped @ base
    return out


def zigzag(loudness: F32, size: int) -> Index:
    """Which channel comes to each place, intp[n]: those of F32[n] from the loudest on, one to each block of ``size`` places, then
    one to each from the last block to the first, and so on."""
    falling = np.argsort(-loudness, kind="stable").reshape(size, -1)
    falling[1::2] = falling[1::2, ::-1]
    return np.ascontiguousarray(falling.T).ravel()
