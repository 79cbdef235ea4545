"""The floats that a tensor's file stores beside its codes, whatever the grid calls them: scales, minimums, super-block factors.

A decoded weight is a sum of terms, one for each float, each a product of that float and whole numbers. So, with codes held
fixed, weights are linear in the floats, and whoever wants to move them needs no more than each one's share of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from quantize.blocks import dequantize, from_rows, to_blocks, to_rows
from quantize.errors import PlanError, asked
from quantize.types import F32, QuantizedTensor

Floats = Mapping[str, F32]  # by param, F32[rows, n_blocks]


def floats_of(tensor: QuantizedTensor) -> dict[str, F32]:
    """Every param of a float dtype, as F32; none for a grid whose scales are whole (MXFP4's exponents)."""
    return {key: value.astype(np.float32) for key, value in tensor.params.items() if value.dtype.kind == "f"}


def with_floats(tensor: QuantizedTensor, floats: Floats) -> QuantizedTensor:
    """The tensor with these floats, rounded as the file stores them."""
    rounded = {key: value.astype(tensor.params[key].dtype) for key, value in floats.items()}
    return replace(tensor, params={**tensor.params, **rounded})


def check_params(tensor: QuantizedTensor) -> None:
    """Raises PlanError for a weight that overflows the file's floats."""
    for key, value in tensor.params.items():
        if not np.isfinite(value).all():
            mend = (
                "is the model intact?"
                if value.dtype == np.float32
                else f"take an ONNX target and {asked('scale_dtype', 'float32')}"
            )
            raise PlanError(f"{tensor.name}: its weights overflow the {value.dtype} {key} of grid {tensor.grid.name}; {mend}")


def shares(tensor: QuantizedTensor) -> dict[str, F32]:
    """What each weight owes to each float, F32[OC, IC]; they add up to ``dequantize(tensor)`` but for its offsets."""
    floats, whole = floats_of(tensor), dequantize(tensor)
    if len(floats) == 1:
        return dict.fromkeys(floats, whole)
    return {key: whole - dequantize(with_floats(tensor, {key: np.zeros_like(value)})) for key, value in floats.items()}


def log_slopes(tensor: QuantizedTensor, gradient: F32) -> dict[str, F32]:
    """Of a loss by the logarithm of each float, F32[rows, n_blocks]; ``gradient`` F32[OC, IC] is that by the weights."""
    return {key: per_block(tensor, gradient * part) for key, part in shares(tensor).items()}


def per_block(tensor: QuantizedTensor, values: F32) -> F32:
    """F32[OC, IC] summed over each block: F32[rows, n_blocks], as the floats are shaped."""
    summed: F32 = to_blocks(to_rows(values, tensor.axis), tensor.grid.block_size).sum(-1)
    return summed


def per_weight(tensor: QuantizedTensor, values: F32) -> F32:
    """F32[rows, n_blocks] to every weight of the block: F32[OC, IC]."""
    spread = np.repeat(values, tensor.grid.block_size, axis=1)[:, : tensor.codes.shape[1]]
    weights: F32 = from_rows(spread, tensor.axis)
    return weights
