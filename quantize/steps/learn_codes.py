"""Rounding learned block by block: codes and scales of a decoder layer's linears, moved by what its output loses.

After SignRound (arXiv 2309.05516): every weight has a latent position, its code is the nearest to that, and positions and
scales take steps of a fixed size against the sign of the gradient of the block's output error, as if rounding were not there
(the straight-through estimator). Here positions begin where GPTQ left the codes, so steps are small and few codes change,
those that lie next to a border; and the layer's inputs are what the rounded layers before it give, so that it makes up for
their errors too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from quantize.blocks import dequantize, from_rows, per_code, to_rows
from quantize.checkpoint.row_order import RowOrders
from quantize.config import FINE_BITS, QuantizeConfig
from quantize.float_params import floats_of, log_slopes, per_block, per_weight, with_floats
from quantize.steps.descent import Descended, Schedule, Student, descend
from quantize.store.tensors import Piece
from quantize.types import F32, U8, QuantizedTensor

CODE_RATE = 0.004  # of the distance between two neighbouring values, per step
SCALE_RATE = 0.004  # of a scale, per step
SEQUENCES = 4  # of each step
SPAN = 10  # steps between two judgements
PULLS = 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0  # how far from its value towards the weight a position may be
UNIFORM = np.float32(12) ** 0.5  # an interval's width over the root mean square error of rounding to its middle


@dataclass
class BlockRounder:
    """Learns one decoder layer after the other, and remembers what it was worth."""

    orders: RowOrders
    config: QuantizeConfig
    losses: list[tuple[float, float]] = field(default_factory=list)  # of each layer's output, before and after

    def learn(self, pieces: list[Piece], weights: Mapping[str, F32], student: Student) -> Iterator[Piece]:
        """A decoder layer's pieces with other codes and scales; ``weights`` F32[...] by name: what was to be rounded.

        Raises CalibrationError for too short a text.
        """
        rounded = []
        for tensor, _ in pieces:
            name, weight = tensor.name, weights[tensor.name]
            if isinstance(tensor, QuantizedTensor):
                rounded.append((tensor, weight))
            else:
                student.put(name, self.orders.to_source(name, weight), learns=False)
        found = learn_rounding(rounded, student, self.orders, self.config)
        self.losses.append((found.before, found.after))
        learned = {tensor.name: tensor for tensor in found.tensors}
        return ((learned.get(tensor.name, tensor), record) for tensor, record in pieces)

    def report(self) -> dict[str, Any] | None:
        """For the store's header; None if no layer was learned."""
        if not self.losses:
            return None
        before, after = zip(*self.losses, strict=True)
        return {"steps": self.config.block_steps, "before": list(before), "after": list(after)}


def learn_rounding(
    rounded: Iterable[tuple[QuantizedTensor, F32]], student: Student, orders: RowOrders, config: QuantizeConfig
) -> Descended:
    """Tensors with other codes and scales, in their order; each comes with its F32[OC, IC] before rounding.

    Raises CalibrationError for too short a text.
    """
    schedule = Schedule("rounding a block", config.block_steps, SEQUENCES, SPAN, config.seed, lambda _: 1.0)
    schedule.check(student.sequences, config.calibration, "--block-steps", "raise --calibration-tokens")
    return descend([_Positions(*pair) for pair in rounded], student, orders, schedule)


class _Positions:
    """Knobs: where each weight of F32[OC, IC] lies between the values of its group, and the group's floats.

    Codes are read from the positions by the params as they were at first: a scale that moves takes its values along.
    """

    def __init__(self, tensor: QuantizedTensor, weight: F32) -> None:
        self.tensor, self._first = tensor, tensor
        self._values = floats_of(tensor)
        self._positions = self._beside(weight)
        self._stride = np.float32(CODE_RATE) * self._intervals(weight)
        self.keep()

    @property
    def moves(self) -> bool:
        """Rounding to 8 bits costs nothing that another rounding could save."""
        return self.tensor.grid.bits < FINE_BITS

    def move(self, gradient: F32, rate: float, step: int) -> None:
        """Everything one stride against the sign of its slope; ``gradient`` F32[OC, IC] is that by the weights."""
        slopes, step_size = log_slopes(self.tensor, gradient), np.float32(rate * SCALE_RATE)
        self._values = {key: value * (1 - step_size * np.sign(slopes[key])) for key, value in self._values.items()}
        self._positions = self._positions - np.float32(rate) * per_weight(self.tensor, self._stride) * np.sign(gradient)
        self.tensor = with_floats(replace(self.tensor, codes=self._codes(self._positions)), self._values)

    def keep(self) -> None:
        """Remember tensor, values and positions."""
        self._kept = self.tensor, self._values, self._positions

    def take_back(self) -> None:
        """What was kept."""
        self.tensor, self._values, self._positions = self._kept

    def _codes(self, weight: F32) -> U8:
        """Of the values nearest to F32[OC, IC], as the tensor holds them."""
        return self._first.grid.encode(np.ascontiguousarray(to_rows(weight, self._first.axis)), *per_code(self._first))

    def _beside(self, weight: F32) -> F32:
        """As near to ``weight`` as its code allows: GPTQ gave many weights another code than the nearest."""
        values, positions = dequantize(self._first), weight.copy()
        for pull in PULLS:
            away = from_rows(self._codes(positions) != self._first.codes, self._first.axis)
            positions = np.where(away, values + np.float32(pull) * (weight - values), positions)
        return positions

    def _intervals(self, weight: F32) -> F32:
        """Distance between two values, F32[rows, n_blocks], by the error that rounding to the nearest leaves."""
        nearest = dequantize(replace(self._first, codes=self._codes(weight)))
        error = per_block(self._first, np.square(nearest - weight))
        widths: F32 = UNIFORM * np.sqrt(error / per_block(self._first, np.ones_like(weight)))
        return widths
