"""Input channels rounded one after the other, each less the steps of those before it: what GPTQ and its polish share."""

from __future__ import annotations

import numpy as np

from quantize.formula import Channels
from quantize.types import F32, Grid


def channels(wanted: F32, mix: F32, held: F32 | None = None, scale: F32 | None = None, zero: F32 | None = None) -> Channels:
    """With room for what is written, and for scales and zeros that are not known yet."""
    codes, values, steps = np.empty(wanted.shape, np.uint8), np.empty_like(wanted), np.empty_like(wanted)
    scale, zero = (np.empty_like(wanted) if value is None else value for value in (scale, zero))
    held = np.empty((0, wanted.shape[1]), np.float32) if held is None else held
    return Channels(wanted, np.ascontiguousarray(mix), held, scale, zero, codes, values, steps)


def round_in_turn(these: Channels, grid: Grid, first: int = 0, last: int | None = None) -> None:
    """Round the channels from ``first`` to before ``last``, as the grid's encode and decode would; those before are rounded.

    Words, where there are, run along output channels; those along input channels are ``round_words``'s.
    """
    from quantize import kernels

    last = len(these.wanted) if last is None else last
    if grid.formula.words is None:
        kernels.round_in_turn(these, grid.formula, first, last)
        return
    for i in range(first, last):
        wanted = these.wanted[i].copy()
        for share, steps in zip(these.mix[i, :i], these.steps, strict=False):
            wanted -= share * steps
        these.codes[i] = grid.encode(wanted, these.scale[i], these.zero[i])
        these.values[i] = grid.decode(these.codes[i], these.scale[i], these.zero[i])
        these.steps[i] = (these.held[i] if len(these.held) else wanted) - these.values[i]
