"""The one loss: axes are chosen by it, transforms are kept by it, budgets are spent by it."""

from __future__ import annotations

import numpy as np

from quantize.types import F32, InputStats


def output_loss(weight: F32, quantized: F32, stats: InputStats) -> float:
    """What the error E = weight - quantized does to the output, under the input's statistics.

    With ``stats.row_weight`` r the predicted KL divergence of the model in nats per token, sum_i r_i (E H ET)_ii; without,
    the mean squared error of the layer's output, tr(E H ET) / OC.
    """
    error = weight - quantized
    moved = error * stats.hessian if stats.hessian.ndim == 1 else error @ stats.hessian
    per_row = np.einsum("oi,oi->o", moved, error, dtype=np.float64)
    return float(per_row.mean() if stats.row_weight is None else per_row @ stats.row_weight)
