"""What GPTQ leaves on the table: each code once more with all others known, then the floats beside the codes, and again.

GPTQ visits a channel once, before those that will have to make up for it are rounded. Coordinate descent (QuantEase, arXiv
2309.01885) goes round again: with E = Q - W and the error's gradient G = E H, the best value of channel j is q_j - G_j / H_jj.
For fixed codes the error is quadratic in the scales and minimums, which conjugate gradients solve for all groups at once.
Neither raises the error, but for the rounding of the floats to the file's dtype.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantize.blocks import dequantize, per_code
from quantize.float_params import Floats, floats_of, per_block, per_weight, shares, with_floats
from quantize.grids.importance import UNSEEN
from quantize.types import F32, Array, Axis, LayerStats, QuantizedTensor

ROUNDS = 2
LAZY_COLUMNS = 64  # gradients beyond this block of channels are brought up to date in one matrix product
ITERATIONS = 10  # of conjugate gradients; the floats are nearly right to begin with
BOUNDS = 0.5, 2.0  # of their change: one that hardly matters must neither vanish nor turn round
_TINY = np.finfo(np.float32).tiny


def polish(tensor: QuantizedTensor, weight: F32, stats: LayerStats) -> QuantizedTensor:
    """The same tensor with a smaller output error under ``stats.hessian`` F32[IC, IC]; ``weight`` F32[OC, IC]."""
    for _ in range(ROUNDS):
        tensor = refit_floats(visit_codes(tensor, weight, stats), weight, stats)
    return tensor


def visit_codes(tensor: QuantizedTensor, weight: F32, stats: LayerStats) -> QuantizedTensor:
    """Every channel's codes once more, by falling diag(H); those of an unseen channel stay."""
    hessian, per_oc, seen = stats.hessian, tensor.axis is Axis.PER_OC, _seen(stats)
    order = np.argsort(-stats.importance, kind="stable")
    codes, scale, zero = (_channels_first(value, per_oc) for value in (tensor.codes, *per_code(tensor)))
    values = np.ascontiguousarray(dequantize(tensor).T)  # [IC, OC]: a channel is one contiguous row
    gradient = hessian @ (values - weight.T)
    for start in range(0, len(order), LAZY_COLUMNS):
        block = order[start : start + LAZY_COLUMNS]
        own, moved = gradient[block], np.zeros((len(block), len(weight)), np.float32)
        curvature = hessian[np.ix_(block, block)]
        for i in np.flatnonzero(seen[block]):
            channel = block[i]
            codes[channel] = tensor.grid.encode(values[channel] - own[i] / curvature[i, i], scale[channel], zero[channel])
            moved[i] = tensor.grid.decode(codes[channel], scale[channel], zero[channel]) - values[channel]
            own += np.outer(curvature[i], moved[i])
        values[block] += moved
        gradient += hessian[:, block] @ moved
    return replace(tensor, codes=np.ascontiguousarray(codes.T if per_oc else codes))


def refit_floats(tensor: QuantizedTensor, weight: F32, stats: LayerStats) -> QuantizedTensor:
    """Least squares for factors of all floats at once, codes fixed: conjugate gradients, scaled by the diagonal.

    Floats on which only unseen channels depend stay.
    """
    seen = _seen(stats)
    parts = {key: part if seen.all() else part * seen for key, part in shares(tensor).items()}
    if not parts:
        return tensor
    weighted = _row_shares(stats)

    def slopes(change: F32) -> dict[str, F32]:
        pulled = change @ stats.hessian * weighted
        return {key: per_block(tensor, pulled * part) for key, part in parts.items()}

    def change_of(factors: Floats) -> F32:
        total = np.zeros_like(weight)
        for key, factor in factors.items():
            total += per_weight(tensor, factor) * parts[key]
        return total

    diagonal = {key: per_block(tensor, part * part * stats.importance * weighted) for key, part in parts.items()}
    factors = {key: np.zeros_like(value) for key, value in diagonal.items()}
    residual = slopes(weight - dequantize(tensor))
    direction = scaled = _divided(residual, diagonal)
    size = _dot(residual, scaled)
    for _ in range(ITERATIONS):
        curved = slopes(change_of(direction))
        length = size / max(_dot(direction, curved), _TINY)
        factors = {key: value + length * direction[key] for key, value in factors.items()}
        residual = {key: value - length * curved[key] for key, value in residual.items()}
        scaled, last = _divided(residual, diagonal), size
        size = _dot(residual, scaled)
        direction = {key: value + size / max(last, _TINY) * direction[key] for key, value in scaled.items()}
    bounded = {key: np.clip(1 + factor, *BOUNDS) for key, factor in factors.items()}
    return with_floats(tensor, {key: value * bounded[key] for key, value in floats_of(tensor).items()})


def _seen(stats: LayerStats) -> Array:
    """Of each input channel, bool[IC], whether an error there is felt at all.

    One that is not could take any value to mend what others lose on the calibration text, and would, as it costs nothing.
    """
    seen: Array = stats.importance > max(UNSEEN * stats.importance.mean(dtype=np.float64), _TINY)
    return seen


def _row_shares(stats: LayerStats) -> F32:
    """The rows' weights around a mean of 1, F32[OC, 1]; F32[1, 1] if none is known, or none counts."""
    mean = 0 if stats.row_weight is None else stats.row_weight.mean()
    if stats.row_weight is None or mean < _TINY:
        return np.ones((1, 1), np.float32)
    shares_of_rows: F32 = np.float32(1 / mean) * stats.row_weight[:, None]
    return shares_of_rows


def _divided(residual: Floats, diagonal: Floats) -> dict[str, F32]:
    """Elementwise, and 0 where nothing depends on the value: a block of zeros, channels that are never active."""
    return {
        key: np.divide(value, diagonal[key], out=np.zeros_like(value), where=diagonal[key] > _TINY)
        for key, value in residual.items()
    }


def _dot(left: Floats, right: Floats) -> np.float32:
    return np.float32(sum(np.sum(value * right[key], dtype=np.float64) for key, value in left.items()))


def _channels_first(values: Array, per_oc: bool) -> Array:
    """A copy of [rows, cols] as [IC, OC], each channel contiguous."""
    return np.array(values.T if per_oc else values, order="C")
