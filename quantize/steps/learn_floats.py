"""What a file stores as floats, moved until the whole model predicts as its source does; codes stay as they were rounded.

Scales and minimums of groups and gains of norms cost the same bytes whatever their values are, and the KL divergence at the
model's output has a gradient for each. Adam moves their logarithms (EfficientQAT, arXiv 2407.11062, trains step sizes end to
end; Norm Tweaking, arXiv 2309.02784, the gains).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from quantize.block import Student
from quantize.checkpoint.row_order import RowOrders
from quantize.float_params import floats_of, log_slopes, with_floats
from quantize.steps.descent import Descended, Schedule, descend, led_back
from quantize.turn import Turn
from quantize.types import F32, FINE_BITS, QuantizedTensor, Tensor
from quantize.weight import weight_of

RATE = 0.0012  # of a value, per step, times the square root of the loss: blind steps of that size cost a like share of any loss
SEQUENCES = 2  # of each step
MOMENTUM, MEMORY = 0.9, 0.98  # Adam's
SPAN = 4  # steps between two judgements

VALUES = "values"  # the one key of a norm


def tune(
    tensors: Iterable[Tensor],
    student: Student,
    orders: RowOrders,
    schedule: Schedule,
    turns: Mapping[str, Turn] | None = None,
) -> Descended:
    """Adam on the floats of ``tensors``; ``turns``: of their inputs, by name."""
    return descend(led_back((_Floats(tensor) for tensor in tensors), turns or {}), student, orders, schedule)


def tuning_schedule(steps: int, seed: int) -> Schedule:
    """Of ``tune``."""
    return Schedule("tuning", steps, SEQUENCES, SPAN, seed, lambda loss: RATE * loss**0.5)


class _Floats:
    """Knobs: the floats of one tensor, in float32 while they move; ``tensor`` is what the file would store now."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._values = floats_of(tensor) if isinstance(tensor, QuantizedTensor) else {VALUES: tensor.values.astype(np.float32)}
        self._mean = {key: np.zeros_like(value) for key, value in self._values.items()}
        self._square = {key: np.zeros_like(value) for key, value in self._values.items()}
        self.keep()

    @property
    def weight(self) -> F32:
        """See Knobs."""
        return weight_of(self.tensor)

    @property
    def moves(self) -> bool:
        """Whether there is anything to move that could help."""
        fine = isinstance(self.tensor, QuantizedTensor) and self.tensor.grid.bits >= FINE_BITS
        return bool(self._values) and not fine

    def keep(self) -> None:
        """Remember tensor and values."""
        self._kept = self.tensor, self._values

    def take_back(self) -> None:
        """What was kept; the way that led on from there counts no more."""
        self.tensor, self._values = self._kept
        for mean in self._mean.values():
            mean[:] = 0

    def move(self, gradient: F32, rate: float, step: int) -> None:
        """Adam on the logarithms of the values; ``gradient`` is that of the weights, F32[OC, IC] or F32[n]."""
        moved = dict[str, F32]()
        for key, slope in self._slopes(gradient).items():
            mean, square = self._mean[key], self._square[key]
            mean += np.float32(1 - MOMENTUM) * (slope - mean)
            square += np.float32(1 - MEMORY) * (slope * slope - square)
            spread = np.sqrt(square / np.float32(1 - MEMORY**step)) + np.finfo(np.float32).tiny
            moved[key] = self._values[key] * (1 - np.float32(rate / (1 - MOMENTUM**step)) * mean / spread)
        self._values = moved
        if isinstance(self.tensor, QuantizedTensor):
            self.tensor = with_floats(self.tensor, self._values)
        else:
            self.tensor = replace(self.tensor, values=self._values[VALUES])

    def _slopes(self, gradient: F32) -> dict[str, F32]:
        if isinstance(self.tensor, QuantizedTensor):
            return log_slopes(self.tensor, gradient)
        return {VALUES: gradient * self.tensor.values}
