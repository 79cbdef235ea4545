"""The only code that knows what an axis does to memory: weights [OC, IC] to blocks [rows, n_blocks, block_size] and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from quantize.types import F32, Array, Axis, PlainTensor, QuantizedTensor, Tensor


def matrix(shape: Sequence[int]) -> tuple[int, int]:
    """(OC, IC) of a weight as it is stored: of a stack of experts [experts, OC, IC] one below the other."""
    return math.prod(shape[:-1]), shape[-1]


def to_rows(weight: Array, axis: Axis) -> Array:
    """[OC, IC] -> [rows, cols] with groups along the last axis (a view): itself for PER_OC, its transpose for PER_IC."""
    return weight if axis is Axis.PER_OC else weight.T


def from_rows(rows: Array, axis: Axis) -> Array:
    """The inverse of ``to_rows``: [rows, cols] -> [OC, IC] (a view)."""
    return rows if axis is Axis.PER_OC else rows.T


def to_blocks(rows: F32, block_size: int) -> F32:
    """F32[..., cols] -> F32[..., ceil(cols / block_size), block_size]; a ragged last block is filled with zeros.

    Zeros never widen a range, because every grid's range contains zero.
    """
    cols = rows.shape[-1]
    padding = -cols % block_size
    if padding:
        rows = np.concatenate([rows, np.zeros((*rows.shape[:-1], padding), rows.dtype)], axis=-1)
    return rows.reshape(*rows.shape[:-1], -1, block_size)


def one_group(length: int, least: int) -> int:
    """The group size, a power of two of at least ``least``, that holds so many weights as one ragged group."""
    return max(least, 1 << (length - 1).bit_length())


def spread(per_group: F32, group_size: int, cols: int) -> F32:
    """F32[..., n_blocks, groups] (scales or zeros) -> F32[..., cols]: every weight's own value."""
    flat = per_group.reshape(*per_group.shape[:-2], -1)
    return np.repeat(flat, group_size, axis=-1)[..., :cols]


def per_code(tensor: QuantizedTensor) -> tuple[F32, F32]:
    """(scale, zero) of every code, F32[rows, cols] each."""
    group_size, cols = tensor.grid.group_size, tensor.codes.shape[1]
    scale, zero = tensor.grid.scale_zero(tensor.params)
    return spread(scale, group_size, cols), spread(zero, group_size, cols)


def unstack(tensor: QuantizedTensor, outs: Sequence[int]) -> list[QuantizedTensor]:
    """The tensors of ``outs`` output channels that lie one below the other in [OC, IC]; a PER_IC group is in one of them."""
    ends = np.cumsum(outs)[:-1]
    side, cuts = (0, ends) if tensor.axis is Axis.PER_OC else (1, ends // tensor.grid.block_size)
    params = {key: np.split(value, cuts, side) for key, value in tensor.params.items()}
    return [
        replace(tensor, codes=np.ascontiguousarray(part), params={key: values[index] for key, values in params.items()})
        for index, part in enumerate(np.split(tensor.codes, ends, side))
    ]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One tensor of chunks of its rows."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, PlainTensor):
        return replace(first, values=np.concatenate([part.values for part in parts if isinstance(part, PlainTensor)]))
    quantized = [part for part in parts if isinstance(part, QuantizedTensor)]
    params = {key: np.concatenate([part.params[key] for part in quantized]) for key in first.params}
    return replace(first, codes=np.concatenate([part.codes for part in quantized]), params=params)


def dequantize(tensor: QuantizedTensor) -> F32:
    """What the codes stand for, F32[OC, IC], by the grid's own formula."""
    values: F32 = from_rows(tensor.grid.decode(tensor.codes, *per_code(tensor)), tensor.axis)
    return values
