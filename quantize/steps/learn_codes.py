"""Rounding learned block by block: codes and scales of a decoder block's linears, moved by what its output loses.

After SignRound (arXiv 2309.05516): every weight has a latent position, its code is the nearest to that, and positions and
scales take steps of a fixed size against the sign of the gradient of the block's output error, as if rounding were not there
(the straight-through estimator). Here positions begin where GPTQ left the codes, so steps are small and few codes change,
those that lie next to a border; and the block's inputs are what the rounded blocks before it give, so that it makes up for
their errors too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantize.block import Block, Kit, Student
from quantize.blocks import dequantize, from_rows, per_code, to_rows
from quantize.errors import asked
from quantize.float_params import floats_of, log_slopes, per_block, per_weight, with_floats
from quantize.steps.descent import Descended, Schedule, descend, led_back, put_plain
from quantize.turn import Turn
from quantize.types import F32, FINE_BITS, U8, Need, QuantizedTensor
from quantize.weight import turned, weight_of

CODE_RATE = 0.004  # of the distance between two neighbouring values, per step
SCALE_RATE = 0.004  # of a scale, per step
SEQUENCES = 4  # of each step
SPAN = 10  # steps between two judgements
PULLS = 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0  # how far from its value towards the weight a position may be
LEARNED = "learned"  # key of a block's report: its output's loss before and after
UNIFORM = np.float32(12) ** 0.5  # an interval's width over the root mean square error of rounding to its middle


@dataclass(frozen=True)
class LearnCodes:
    """The rounding of the block that runs, learned; whatever of it is not rounded counts as it will be stored."""

    needs: Need = Need.LEARNING

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step. Raises CalibrationError for too short a text."""
        student = None if kit.run is None else kit.run.student
        if student is None:
            return block
        learning = {name: block.tensors[name] for name in block.tensors if name in block.rounded}
        put_plain(block, student, kit)
        turns = {name: turn for name in learning if (turn := block.plans[name].turn) is not None}
        pairs = [(block.rounded[name].tensor, turned(weight, turns.get(name))) for name, weight in learning.items()]
        found = learn_rounding(pairs, student, kit, turns)
        rounded = {
            name: block.rounded[name]._replace(tensor=tensor)
            for name, tensor in zip(learning, found.tensors, strict=True)
            if isinstance(tensor, QuantizedTensor)
        }
        return replace(block, rounded=rounded).reporting(LEARNED, found.before, found.after)


def learn_rounding(
    rounded: Iterable[tuple[QuantizedTensor, F32]], student: Student, kit: Kit, turns: Mapping[str, Turn] | None = None
) -> Descended:
    """Tensors with other codes and scales, in their order; each comes with its F32[OC, IC] before rounding, turned already.

    Raises CalibrationError for too short a text.
    """
    schedule = Schedule("rounding a block", kit.steps, SEQUENCES, SPAN, kit.seed, lambda _: 1.0)
    schedule.check(student.sequences, kit.text, "block_steps", f"raise {asked('data.tokens')}")
    return descend(led_back((_Positions(*pair) for pair in rounded), turns or {}), student, kit.orders, schedule)


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
    def weight(self) -> F32:
        """See Knobs."""
        return weight_of(self.tensor)

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
            positions = np.where(self._away(positions), values + np.float32(pull) * (weight - values), positions)
        return positions

    def _away(self, positions: F32) -> NDArray[np.bool_]:
        """Where not the code that was there is nearest, or the word, bool[OC, IC]."""
        dims = self._first.grid.formula.dims
        differ = self._codes(positions) != self._first.codes
        words = differ.reshape(len(differ), -1, dims).any(-1)
        away: NDArray[np.bool_] = from_rows(np.repeat(words, dims, axis=1), self._first.axis)
        return away

    def _intervals(self, weight: F32) -> F32:
        """Distance between two values, F32[rows, n_blocks], by the error that rounding to the nearest leaves."""
        nearest = dequantize(replace(self._first, codes=self._codes(weight)))
        error = per_block(self._first, np.square(nearest - weight))
        widths: F32 = UNIFORM * np.sqrt(error / per_block(self._first, np.ones_like(weight)))
        return widths
