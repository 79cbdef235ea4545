"""What GPTQ leaves on the table: each code once more with all others known, then the floats beside the codes, and again.

GPTQ visits a channel once, before those that will have to make up for it are rounded. Coordinate descent (QuantEase, arXiv
2309.01885) goes round again: with E = Q - W and the error's gradient G = E H, the best value of channel j is q_j - G_j / H_jj.
For fixed codes the error is quadratic in the floats (``refit``). Neither raises the error, but for the rounding of the floats
to the file's dtype.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantize.blocks import dequantize, per_code
from quantize.grids.importance import seen
from quantize.rounding.refit import refit_floats
from quantize.types import F32, Array, Axis, LayerStats, QuantizedTensor

ROUNDS = 2
LAZY_COLUMNS = 64  # gradients beyond this block of channels are brought up to date in one matrix product


def polish(tensor: QuantizedTensor, weight: F32, stats: LayerStats) -> QuantizedTensor:
    """The same tensor with a smaller output error under ``stats.hessian`` F32[IC, IC]; ``weight`` F32[OC, IC]."""
    for _ in range(ROUNDS):
        tensor = refit_floats(visit_codes(tensor, weight, stats), weight, stats)
    return tensor


def visit_codes(tensor: QuantizedTensor, weight: F32, stats: LayerStats) -> QuantizedTensor:
    """Every channel's codes once more, by falling diag(H); those of an unseen channel stay."""
    hessian, per_oc = stats.hessian, tensor.axis is Axis.PER_OC
    order = np.argsort(-stats.importance, kind="stable")[: np.count_nonzero(seen(stats.importance))]
    codes, scale, zero = (_channels_first(value, per_oc) for value in (tensor.codes, *per_code(tensor)))
    values = np.ascontiguousarray(dequantize(tensor).T)  # [IC, OC]: a channel is one contiguous row
    gradient = hessian[order] @ (values - weight.T)
    for start in range(0, len(order), LAZY_COLUMNS):
        block, later = order[start : start + LAZY_COLUMNS], order[start + LAZY_COLUMNS :]
        curvature = hessian[np.ix_(block, block)]
        moved = np.empty((len(block), len(weight)), np.float32)
        for i, channel in enumerate(block):
            slope = gradient[start + i] + curvature[i, :i] @ moved[:i]
            old = values[channel]
            codes[channel] = tensor.grid.encode(old - slope / curvature[i, i], scale[channel], zero[channel])
            np.subtract(tensor.grid.decode(codes[channel], scale[channel], zero[channel]), old, out=moved[i])
        gradient[start + len(block) :] += hessian[np.ix_(later, block)] @ moved
    return replace(tensor, codes=np.ascontiguousarray(codes.T if per_oc else codes))


def _channels_first(values: Array, per_oc: bool) -> Array:
    """A copy of [rows, cols] as [IC, OC], each channel contiguous."""
    return np.array(values.T if per_oc else values, order="C")
