"""The floats beside fixed codes, all at once: weighed least squares for a factor of each, by conjugate gradients.

With the codes held, what is decoded is linear in the floats, W' = sum over floats of f P, so the loss tr(R E H ET) of
E = W - W' is quadratic in the factors f. It falls apart into small systems of normal equations::

    PER_OC: the floats of one output channel        G[b, c] = sum of P_i H_ij P_j over inputs i in b, j in c
    PER_IC: those of one group of output channels   G[i, j] = H_ij * sum of r_o P_oi P_oj over its rows o
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quantize.blocks import dequantize, to_blocks
from quantize.float_params import floats_of, shares, with_floats
from quantize.grids.importance import seen
from quantize.types import F32, Axis, InputStats, QuantizedTensor

ITERATIONS = 10  # of conjugate gradients; the floats are nearly right to begin with
BOUNDS = 0.5, 2.0  # of their change: one that hardly matters must neither vanish nor turn round
SYSTEMS = 1 << 24  # entries of the systems that are in memory at a time
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class _Systems:
    """``gram`` F32[n_systems, n, n] times the wanted factors F32[n_systems, n] is ``pull``; ``where`` they belong.

    n counts floats of each of the tensor's params in turn.
    """

    where: tuple[slice, slice]  # rows, blocks
    gram: F32
    pull: F32


def refit_floats(tensor: QuantizedTensor, weight: F32, stats: InputStats) -> QuantizedTensor:
    """Floats of less output error for these codes, under ``stats.hessian`` F32[IC, IC]; ``weight`` F32[OC, IC].

    Floats on which only unseen channels depend stay. The error does not rise, but for the rounding to the file's dtype.
    """
    felt = seen(stats.importance)
    owed = {key: part if felt.all() else part * felt for key, part in shares(tensor).items()}
    if not owed:
        return tensor
    pulled: F32 = np.matmul(weight - dequantize(tensor), stats.hessian)
    of_axis = _of_rows if tensor.axis is Axis.PER_OC else _of_groups
    floats = floats_of(tensor)
    for systems in of_axis(tensor.grid.block_size, np.stack(list(owed.values())), pulled, stats):
        change = _solved(systems.gram, systems.pull).reshape(len(systems.pull), len(owed), -1)
        for index, key in enumerate(owed):
            part = floats[key][systems.where]
            part *= np.clip(1 + change[:, index].reshape(part.shape), *BOUNDS)
    return with_floats(tensor, floats)


def _of_rows(block: int, parts: F32, pulled: F32, stats: InputStats) -> Iterator[_Systems]:
    """Of PER_OC floats: rows do not know of one another, nor then of what each is worth."""
    count, (outs, ins) = -(-parts.shape[2] // block), pulled.shape
    n = len(parts) * count
    step = max(1, SYSTEMS // (n * n))
    for start in range(0, outs, step):
        rows = slice(start, start + step)
        part, pull = to_blocks(parts[:, rows], block), to_blocks(pulled[rows], block)
        gram = np.empty((part.shape[1], len(parts), count, len(parts), count), np.float32)
        for index in range(count):
            inside, after = slice(index * block, (index + 1) * block), slice(index * block, ins)
            corner = stats.hessian[inside, after]
            for key, own in enumerate(parts[:, rows, inside]):
                moved = to_blocks(own @ corner, block)
                found = np.einsum("rcg,krcg->rkc", moved, part[:, :, index:])
                gram[:, key, index, :, index:] = found
                gram[:, :, index:, key, index] = found
        pull = np.einsum("krcg,rcg->rkc", part, pull)
        yield _Systems((rows, slice(None)), gram.reshape(-1, n, n), pull.reshape(-1, n))


def _of_groups(block: int, parts: F32, pulled: F32, stats: InputStats) -> Iterator[_Systems]:
    """Of PER_IC floats: every input channel's of one group of output channels, which share their rows."""
    ins = parts.shape[2]
    n = len(parts) * ins
    mean = 0 if stats.row_weight is None else stats.row_weight.mean()
    for index, start in enumerate(range(0, len(pulled), block)):
        rows = slice(start, start + block)
        part = parts[:, rows]
        weighed = part if stats.row_weight is None or mean < _TINY else part * (stats.row_weight[rows, None] / mean)
        gram = np.empty((len(parts), ins, len(parts), ins), np.float32)
        for one, left in enumerate(weighed):
            for other, right in enumerate(part):
                np.multiply(left.T @ right, stats.hessian, out=gram[one, :, other])
        pull = np.einsum("koi,oi->ki", weighed, pulled[rows])
        yield _Systems((slice(None), slice(index, index + 1)), gram.reshape(1, n, n), pull.reshape(1, n))


def _solved(gram: F32, pull: F32) -> F32:
    """Nearly ``gram``^-1 ``pull``, F32[n_systems, n], scaled by the diagonal; 0 where nothing depends on a factor."""
    diagonal = np.einsum("snn->sn", gram)
    scale: F32 = np.divide(1, diagonal, out=np.zeros_like(diagonal), where=diagonal > _TINY)
    factors, residual = np.zeros_like(pull), pull * (scale > 0)
    direction = scaled = residual * scale
    size = _dot(residual, scaled)
    for _ in range(ITERATIONS):
        curved = np.matmul(gram, direction[..., None])[..., 0] * (scale > 0)
        length = size / np.maximum(_dot(direction, curved), _TINY)
        factors = factors + length * direction
        residual = residual - length * curved
        scaled, last = residual * scale, size
        size = _dot(residual, scaled)
        direction = scaled + size / np.maximum(last, _TINY) * direction
    return factors


def _dot(left: F32, right: F32) -> F32:
    """Of each system, F32[n_systems, 1]."""
    summed: F32 = (left * right).sum(-1, dtype=np.float64)[:, None].astype(np.float32)
    return summed
