"""What a file stores as floats, moved until the whole model predicts as its source does; codes stay as they were rounded.

Scales and minimums of groups and gains of norms cost the same bytes whatever their values are, and the KL divergence at the
model's output has a gradient for each. Adam moves their logarithms (EfficientQAT, arXiv 2407.11062, trains step sizes end to
end; Norm Tweaking, arXiv 2309.02784, the gains). Sequences that no step saw decide which state is kept, so tuning never loses
on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.blocks import dequantize
from quantize.checkpoint.row_order import RowOrders
from quantize.errors import CalibrationError
from quantize.float_params import floats_of, per_block, shares, with_floats
from quantize.plan import FINE_BITS, QuantizeConfig
from quantize.progress import track
from quantize.store import TensorRecord, joined
from quantize.types import F32, PlainTensor, QuantizedTensor

if TYPE_CHECKING:
    from quantize.source_model import Student

RATE = 0.0012  # of a value, per step, times the square root of the loss: blind steps of that size cost a like share of any loss
SEQUENCES = 2  # of each step
MOMENTUM, MEMORY = 0.9, 0.98  # Adam's
JUDGES = 8  # sequences that no step sees
SPAN = 4  # steps between two judgements

VALUES = "values"  # the one key of a norm

Tensor = QuantizedTensor | PlainTensor  # the latter in float32 where they move: norms and biases
Piece = tuple[Tensor, TensorRecord]


@dataclass(frozen=True)
class Tuned:
    """The tensors, and their loss on the judges' sequences before and after, in nats per token."""

    tensors: list[Tensor]
    before: float
    after: float


def tune(tensors: Iterable[Tensor], student: Student, orders: RowOrders, steps: int, seed: int) -> Tuned:
    """``steps`` of Adam on the floats of ``tensors``; the last JUDGES of the student's sequences decide what is kept.

    Steps take the others in an order that ``seed`` draws, and when all were seen, again. The rate falls to nothing at the last
    step; a span that did not help is taken back, and the rate halved.
    """
    crew = _Crew([_Knobs(tensor) for tensor in tensors], student, orders)
    learned = student.sequences - JUDGES
    assert learned >= SEQUENCES, f"{student.sequences} sequences"
    judges, drawn = np.arange(learned, student.sequences), np.random.default_rng(seed).permutation(learned)
    crew.show()
    before = best = student.loss(judges)
    rate = RATE * before**0.5
    for step in track(range(1, steps + 1), "tuning"):
        places = np.arange((step - 1) * SEQUENCES, step * SEQUENCES)
        crew.move(student.gradients(drawn.take(places, mode="wrap")), rate * (1 - (step - 1) / steps), step)
        if step % SPAN == 0 or step == steps:
            loss = student.loss(judges)
            if loss < best:
                best = loss
                crew.keep()
            else:
                rate /= 2
                crew.take_back()
    return Tuned(crew.tensors(), before, best)


def whole_pieces(pieces: Iterable[Piece]) -> list[Piece]:
    """Tensors that came in chunks of rows, joined."""
    groups = [list(group) for _, group in groupby(pieces, key=lambda piece: piece[1].name)]
    return [(joined([tensor for tensor, _ in group]), group[0][1]) for group in groups]


def tune_pieces(
    pieces: list[Piece], student: Student, orders: RowOrders, config: QuantizeConfig
) -> tuple[list[Piece], dict[str, Any]]:
    """``tune`` what there is to tune, and what the store's header says of it. Raises CalibrationError for too short a text."""
    if student.sequences < JUDGES + SEQUENCES:
        raise CalibrationError(
            f"{config.calibration}: {student.sequences} sequences, but --tune-steps needs {JUDGES} to judge by and {SEQUENCES} "
            "to learn from; raise --calibration-tokens, or give --tune-steps 0"
        )
    chosen = [index for index, (tensor, _) in enumerate(pieces) if isinstance(tensor, QuantizedTensor) or tensor.values.ndim == 1]
    found = tune([pieces[index][0] for index in chosen], student, orders, config.tune_steps, config.seed)
    tuned = dict(zip(chosen, found.tensors, strict=True))
    report = {"steps": config.tune_steps, "before": found.before, "after": found.after}
    return [(tuned.get(index, tensor), record) for index, (tensor, record) in enumerate(pieces)], report


class _Crew:
    """All tensors at once: numpy lets go of the interpreter while it computes."""

    def __init__(self, knobs: list[_Knobs], student: Student, orders: RowOrders) -> None:
        self._knobs, self._student, self._orders = knobs, student, orders

    def tensors(self) -> list[Tensor]:
        """As a file would store them now."""
        return [knobs.tensor for knobs in self._knobs]

    def show(self) -> None:
        """Put every weight into the student."""
        self._everybody(self._show)

    def keep(self) -> None:
        """This is where ``take_back`` goes."""
        for knobs in self._knobs:
            knobs.keep()

    def take_back(self) -> None:
        """As at the last ``keep``, or at the beginning."""

        def one(knobs: _Knobs) -> None:
            if knobs.moves:
                knobs.take_back()
                self._show(knobs)

        self._everybody(one)

    def move(self, gradients: Mapping[str, F32], rate: float, step: int) -> None:
        """One step for every tensor that has a gradient F32[OC, IC] (or F32[n]), in the source's row order; the others stand."""

        def one(knobs: _Knobs) -> None:
            name = knobs.tensor.name
            if name in gradients:
                knobs.move(self._orders.to_target(name, gradients[name]), rate, step)
                self._show(knobs)

        self._everybody(one)

    def _show(self, knobs: _Knobs) -> None:
        name = knobs.tensor.name
        self._student.put(name, self._orders.to_source(name, weight_of(knobs.tensor)), learns=knobs.moves)

    def _everybody(self, work: Callable[[_Knobs], None]) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(work, self._knobs))


class _Knobs:
    """The floats of one tensor, in float32 while they move; ``tensor`` is what the file would store now."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._values = floats_of(tensor) if isinstance(tensor, QuantizedTensor) else {VALUES: tensor.values.astype(np.float32)}
        self._mean = {key: np.zeros_like(value) for key, value in self._values.items()}
        self._square = {key: np.zeros_like(value) for key, value in self._values.items()}
        self.keep()

    @property
    def moves(self) -> bool:
        """Whether there is anything to move that could help."""
        fine = isinstance(self.tensor, QuantizedTensor) and self.tensor.grid.bits >= FINE_BITS
        return bool(self._values) and not fine

    def keep(self) -> None:
        """Remember tensor and values."""
        self._kept = self.tensor, {key: value.copy() for key, value in self._values.items()}

    def take_back(self) -> None:
        """What was kept; the way that led on from there counts no more."""
        self.tensor, values = self._kept
        self._values = {key: value.copy() for key, value in values.items()}
        for mean in self._mean.values():
            mean[:] = 0

    def move(self, gradient: F32, rate: float, step: int) -> None:
        """Adam on the logarithms of the values; ``gradient`` is that of the weights, F32[OC, IC] or F32[n]."""
        for key, slope in self._slopes(gradient).items():
            mean, square = self._mean[key], self._square[key]
            mean += np.float32(1 - MOMENTUM) * (slope - mean)
            square += np.float32(1 - MEMORY) * (slope * slope - square)
            spread = np.sqrt(square / np.float32(1 - MEMORY**step)) + np.finfo(np.float32).tiny
            self._values[key] *= 1 - np.float32(rate / (1 - MOMENTUM**step)) * mean / spread
        if isinstance(self.tensor, QuantizedTensor):
            self.tensor = with_floats(self.tensor, self._values)
        else:
            self.tensor = replace(self.tensor, values=self._values[VALUES].copy())

    def _slopes(self, gradient: F32) -> dict[str, F32]:
        """Of the logarithms: the gradient times what the weights owe to each value."""
        if isinstance(self.tensor, PlainTensor):
            return {VALUES: gradient * self.tensor.values}
        return {key: per_block(self.tensor, gradient * part) for key, part in shares(self.tensor).items()}


def weight_of(tensor: Tensor) -> F32:
    """What a tensor stands for, F32[OC, IC] or F32[n]."""
    return dequantize(tensor) if isinstance(tensor, QuantizedTensor) else tensor.values
