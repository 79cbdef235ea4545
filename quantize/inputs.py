"""What was seen of a linear's input, token by token and channel by channel, on the calibration text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.turn import Turn

F32 = NDArray[np.float32]
Array = NDArray[Any]
SAMPLE = 512  # tokens, evenly spread over the text


@dataclass(frozen=True, eq=False)
class Inputs:
    """``sample`` F32[tokens, IC], some tokens, each of which counts ``weight`` F32[tokens]; ``low`` and ``high`` F32[IC]: the
    ends of each channel over all of the text."""

    sample: F32
    weight: F32
    low: F32
    high: F32

    @property
    def peak(self) -> F32:
        """F32[IC]: the largest size of each channel."""
        peaks: F32 = np.maximum(np.abs(self.low), np.abs(self.high))
        return peaks

    def moved(self, order: NDArray[np.intp], factor: F32) -> Inputs:
        """Channel i is ``factor[i]`` times what was channel ``order[i]``."""
        ends = self.low[order] * factor, self.high[order] * factor
        return replace(self, sample=self.sample[:, order] * factor, low=np.minimum(*ends), high=np.maximum(*ends))

    def turned(self, turn: Turn) -> Inputs:
        """Those of the turned input; its ends are those of the sample, since nobody kept the others."""
        sample = turn.apply(self.sample)
        return replace(self, sample=sample, low=sample.min(0), high=sample.max(0))


class Sampler:
    """Of ``total`` tokens that come in parts, in their order, every so many-th is kept."""

    def __init__(self, total: int) -> None:
        self._step = -(-total // SAMPLE)
        self._seen, self._ends = 0, list[tuple[F32, F32]]()
        self._kept, self._weights = list[F32](), list[F32]()

    def see(self, x: F32, weight: F32) -> None:
        """F32[tokens, IC], each of which counts F32[tokens]. What is kept is copied: the memory is another's."""
        first = -self._seen % self._step
        self._kept.append(x[first :: self._step].copy())
        self._weights.append(weight[first :: self._step].copy())
        self._ends.append((x.min(0), x.max(0)))
        self._seen += len(x)

    def inputs(self) -> Inputs:
        """Of all tokens so far."""
        lows, highs = zip(*self._ends, strict=True)
        return Inputs(np.concatenate(self._kept), np.concatenate(self._weights), np.min(lows, axis=0), np.max(highs, axis=0))
