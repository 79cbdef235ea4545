"""Words and pairs found for weights: the nearest of those that may be stored."""

from __future__ import annotations

import numpy as np

from quantize.formula import Words
from quantize.types import F32, U8


def spelled(words: Words, x: F32, w: F32, scale: F32) -> U8:
    """Codes of the nearest words, U8[n, dims], of F32[n, dims] twice and F32[n]."""
    from quantize import kernels, pair_kernels

    codes = np.empty(x.shape, np.uint8)
    nearest = kernels.nearest_words if words.minus else pair_kernels.nearest_pairs
    nearest(kernels.Spelled(*map(np.ascontiguousarray, (x, w, scale))), words, codes)
    return codes


def encoded(words: Words, x: F32, scale: F32, weights: F32) -> U8:
    """Codes of the nearest words along the last axis, which begins with a word; what it lacks at its end is 0. All broadcast."""
    shape = np.broadcast_shapes(x.shape, scale.shape)
    cols, filling = shape[-1], -shape[-1] % words.dims
    ends = [(0, 0)] * (len(shape) - 1) + [(0, filling)]
    own = [np.pad(np.broadcast_to(value, shape), ends).reshape(-1, words.dims) for value in (x, weights, scale)]
    return spelled(words, own[0], own[1], own[2][:, 0]).reshape(*shape[:-1], -1)[..., :cols]
