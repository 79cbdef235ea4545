"""What GPTQ leaves on the table: each code once more with all others known, then the floats beside the codes, and again.

GPTQ visits a channel once, before those that will have to make up for it are rounded. Coordinate descent (QuantEase, arXiv
2309.01885) goes round again: with E = Q - W and the error's gradient G = E H, the best value of channel j is q_j - G_j / H_jj.
For fixed codes the error is quadratic in the floats (``refit``). Neither raises the error, but for the rounding of the floats
to the file's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from quantize.blocks import dequantize, per_code, to_rows
from quantize.grids.importance import seen
from quantize.rounding.in_turn import channels, round_in_turn
from quantize.rounding.refit import refit_floats
from quantize.types import F32, Array, Axis, InputStats, QuantizedTensor

ROUNDS = 2
LAZY_COLUMNS = 64  # gradients beyond this block of channels are brought up to date in one matrix product


def polish(tensor: QuantizedTensor, weight: F32, stats: InputStats) -> QuantizedTensor:
    """The same tensor with a smaller output error under ``stats.hessian`` F32[IC, IC]; ``weight`` F32[OC, IC]."""
    for _ in range(ROUNDS):
        tensor = refit_floats(visit_codes(tensor, weight, stats), weight, stats)
    return tensor


def visit_codes(tensor: QuantizedTensor, weight: F32, stats: InputStats) -> QuantizedTensor:
    """Every channel's codes once more, by falling diag(H); those of an unseen channel stay."""
    order, per_oc = np.argsort(-stats.importance, kind="stable"), tensor.axis is Axis.PER_OC
    visited = np.count_nonzero(seen(stats.importance))
    hessian = stats.hessian[np.ix_(order, order)]
    arrays: Iterable[Array] = (tensor.codes, *per_code(tensor), to_rows(dequantize(tensor), tensor.axis))
    codes, scale, zero, values = ((value.T if per_oc else value)[order] for value in arrays)  # [IC in visiting order, OC]
    gradient = hessian[:visited] @ (values - weight.T[order])
    for start in range(0, visited, LAZY_COLUMNS):
        block = slice(start, min(start + LAZY_COLUMNS, visited))
        curvature = hessian.diagonal()[block, None]
        target: F32 = np.subtract(values[block], gradient[block] / curvature)
        these = channels(target, -hessian[block, block] / curvature, values[block], scale[block], zero[block])
        round_in_turn(these, tensor.grid)
        codes[block] = these.codes
        gradient[block.stop :] -= hessian[block.stop : visited, block] @ these.steps
    back = np.empty_like(codes)
    back[order] = codes
    return replace(tensor, codes=np.ascontiguousarray(back.T if per_oc else back))
