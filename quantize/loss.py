"""The one loss: axes are chosen by it, transforms are kept by it, budgets are spent by it."""

from __future__ import annotations

import numpy as np

from quantize.types import F32, InputStats


def activation_loss(weight: F32, rounded: F32, stats: InputStats) -> float:
    """What the error e = ``rounded`` - x of the input does to the output: sum_i r_i (W E[e eT] WT)_ii over the sample
    ``stats.inputs.sample``, F32[tokens, IC], whose tokens are weighted; in the units of ``output_loss``."""
    assert stats.inputs is not None, "no sample of the input was kept"
    sample, tokens = stats.inputs.sample, stats.inputs.weight
    moved = np.square((rounded - sample) @ weight.T)
    per_row = np.einsum("t,to->o", tokens, moved, dtype=np.float64) / len(sample)
    return float(per_row.mean() if stats.row_weight is None else per_row @ stats.row_weight)


def output_loss(weight: F32, quantized: F32, stats: InputStats) -> float:
    """What the error E = weight - quantized does to the output, under the input's statistics.

    With ``stats.row_weight`` r the predicted KL divergence of the model in nats per token, sum_i r_i (E H ET)_ii; without,
    the mean squared error of the layer's output, tr(E H ET) / OC.
    """
    error = weight - quantized
    moved = error * stats.hessian if stats.hessian.ndim == 1 else error @ stats.hessian
    per_row = np.einsum("oi,oi->o", moved, error, dtype=np.float64)
    return float(per_row.mean() if stats.row_weight is None else per_row @ stats.row_weight)
