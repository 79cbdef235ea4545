"""What a file stores of a weight: the sum of parts, each of which reads all input channels, turned or not, or some.

::

    y = W x = (the first part) turn(x) + (the second) x[reads] + ...      parts beside a whole weight
    y = W x = (the first part) x[reads] + (the second) x[reads] + ...      each channel read by one part

The first part is named like the weight, those beside it NAME.part1.weight, NAME.part2.weight, ... (``part_name``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantize.activations import Activation
from quantize.blocks import dequantize
from quantize.checkpoint.floats import to_f32
from quantize.turn import Turn
from quantize.types import F32, QuantizedTensor, Tensor

Index = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Part:
    """``weight`` [OC, n], or some of its rows; ``reads`` intp[n]: the input channels of its columns; None: all. ``turn``: of the
    input before it is multiplied, and ``activation``: what rounds it then; None: the runtime by itself."""

    weight: Tensor
    reads: Index | None = None
    turn: Turn | None = None
    activation: Activation | None = None

    def dense(self) -> F32:
        """What it stands for in the source's basis, F32[OC, n], or F32[n] of a norm or bias."""
        return turned_back(weight_of(self.weight), self.turn)


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """All parts of a weight; the first reads all of its input, or no two the same channel of it and all together each."""

    parts: tuple[Part, ...]

    def dense(self, inputs: int | None = None) -> F32:
        """F32[OC, IC]: what the parts stand for together, in the source's basis; F32[n] of a norm or bias. ``inputs``: IC, where
        some are missing."""
        first, *others = self.parts
        total = first.dense()
        if first.reads is not None:
            others = [first, *others]
            total = np.zeros((len(total), inputs or sum(map(len, _read(others)))), np.float32)
        elif others:
            total = total.copy()
        for part in others:
            total[:, part.reads] += part.dense()
        return total


def turned(values: F32, turn: Turn | None) -> F32:
    """Of F32[OC, IC] in the source's basis, a weight or its gradient, what belongs to the turned input."""
    return values if turn is None else turn.apply(values)


def turned_back(values: F32, turn: Turn | None) -> F32:
    """The inverse of ``turned``: of F32[OC, IC] that multiplies a turned input what multiplies the input."""
    return values if turn is None else turn.back(values)


def divides(reads: Sequence[Index], inputs: int) -> bool:
    """Whether these are ``inputs`` channels, each once."""
    return np.array_equal(np.sort(np.concatenate(reads)), np.arange(inputs))


def _read(parts: Iterable[Part]) -> list[Index]:
    return [part.reads for part in parts if part.reads is not None]


def weight_of(tensor: Tensor) -> F32:
    """What a tensor stands for, F32[OC, n] of its own input, which may be turned, or F32[n] of a norm or bias."""
    return dequantize(tensor) if isinstance(tensor, QuantizedTensor) else to_f32(tensor.values, tensor.dtype)
