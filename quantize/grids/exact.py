"""Weights that lie on a grid already, because somebody else has quantized them: the scale that stands for them, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

import numpy as np

from quantize.types import F32, Array

NUDGES = (0.0, np.inf, -np.inf)  # a product of a float32 scale was rounded, so that its quotient may be next to the scale


def exact_scale(
    groups: F32, levels: Iterable[float], nearest: Callable[[F32], F32], stored: Callable[[F32], Array]
) -> Array | None:
    """What a file stores as scale [...] of F32[..., n], of which every value is then a level times the scale; None if of one
    group none is.

    The extreme value may be any of ``levels``, the first that fits is taken. ``nearest``: of what is divided by the scale, the
    level. ``stored``: a scale in the file's dtype.
    """
    flat = groups.reshape(-1, groups.shape[-1])
    extreme = np.take_along_axis(flat, np.abs(flat).argmax(-1)[:, None], 1)[:, 0]
    scale = stored(np.zeros_like(extreme))  # of a group of zeros
    left = np.flatnonzero(extreme)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for level, nudge in product(levels, NUDGES):
            if not len(left):
                break
            trial = stored(extreme[left] / np.float32(level))
            if nudge and trial.dtype != np.float32:
                continue
            trial = np.nextafter(trial, np.float32(nudge)) if nudge else trial
            step = trial.astype(np.float32)[:, None]
            fits = (nearest(flat[left] / step) * step == flat[left]).all(-1)
            scale[left[fits]] = trial[fits]
            left = left[~fits]
    return None if len(left) else scale.reshape(groups.shape[:-1])


def either_sign(levels: Iterable[float]) -> list[float]:
    """The levels that an extreme value may be, the least first: the scale is as coarse as can be."""
    return sorted({float(level) for level in levels if level}, key=abs)
