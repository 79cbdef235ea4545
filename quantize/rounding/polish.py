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
from quantize.rounding.words import dims_of, round_words, words_first
from quantize.types import F32, Array, Axis, InputStats, QuantizedTensor

ROUNDS = 2
LAZY_COLUMNS = 64  # gradients beyond this block of channels are brought up to date in one matrix product


def polish(tensor: QuantizedTensor, weight: F32, stats: InputStats) -> QuantizedTensor:
    """The same tensor with a smaller output error under ``stats.hessian`` F32[IC, IC]; ``weight`` F32[OC, IC]."""
    for _ in range(ROUNDS):
        tensor = refit_floats(visit_codes(tensor, weight, stats), weight, stats)
    return tensor


def visit_codes(tensor: QuantizedTensor, weight: F32, stats: InputStats) -> QuantizedTensor:
    """Every channel's codes once more, by falling diag(H); those of an unseen channel stay, or of a word that has one."""
    per_oc, dims = tensor.axis is Axis.PER_OC, dims_of(tensor.grid, tensor.axis)
    order, visited = _visits(stats.importance, dims)
    hessian = stats.hessian[np.ix_(order, order)]
    arrays: Iterable[Array] = (tensor.codes, *per_code(tensor), to_rows(dequantize(tensor), tensor.axis))
    codes, scale, zero, values = ((value.T if per_oc else value)[order] for value in arrays)  # [IC in visiting order, OC]
    gradient = hessian[:visited] @ (values - weight.T[order])
    for start in range(0, visited, LAZY_COLUMNS):
        block = slice(start, min(start + LAZY_COLUMNS, visited))
        curvature = hessian.diagonal()[block, None]
        target: F32 = np.subtract(values[block], gradient[block] / curvature)
        these = channels(target, -hessian[block, block] / curvature, values[block], scale[block], zero[block])
        if dims == 1:
            round_in_turn(these, tensor.grid)
        else:
            these.codes[:] = codes[block]
            round_words(these, tensor.grid, hessian.diagonal()[block])
        codes[block] = these.codes
        gradient[block.stop :] -= hessian[block.stop : visited, block] @ these.steps
    back = np.empty_like(codes)
    back[order] = codes
    return replace(tensor, codes=np.ascontiguousarray(back.T if per_oc else back))


def _visits(importance: F32, dims: int) -> tuple[Array, int]:
    """Input channels in words of ``dims``, and how many come first that are visited: whole words of seen channels."""
    order, felt = words_first(importance, dims), seen(importance)
    whole = len(order) // dims * dims
    words = order[:whole].reshape(-1, dims)
    unseen = ~felt[words].all(1)
    order[:whole] = words[np.argsort(unseen, kind="stable")].ravel()
    return order, whole - dims * int(np.count_nonzero(unseen))
