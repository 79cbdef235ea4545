"""Steps down a slope that only a model in torch knows, for everything that a quantized tensor can move, all tensors side by side.

What moves and by which rule is the knobs' business, what is lost the student's. Sequences that no step saw decide which state
is kept, so a descent never loses on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantize.block import Block, Kit, Student
from quantize.checkpoint.row_order import RowOrders
from quantize.errors import CalibrationError, asked
from quantize.progress import track
from quantize.turn import Rotation
from quantize.types import F32, Tensor
from quantize.weight import turned, turned_back, weight_of
from quantize.workers import in_threads

NO_TURNS: Mapping[str, Rotation] = {}
JUDGES = 8  # sequences that no step sees, spread over the text: its end may be of another kind than its beginning


class Knobs(Protocol):
    """What can be moved in one tensor."""

    @property
    def tensor(self) -> Tensor:
        """As a file would store it now."""

    @property
    def moves(self) -> bool:
        """Whether there is anything to move that could help."""

    def move(self, gradient: F32, rate: float, step: int) -> None:
        """Step number ``step``, from 1; ``gradient`` is that of the weights, F32[OC, IC] or F32[n]."""

    def keep(self) -> None:
        """This is where ``take_back`` goes."""

    def take_back(self) -> None:
        """As at the last ``keep``, or at the beginning."""


@dataclass(frozen=True)
class Schedule:
    """``steps`` of ``sequences`` each, drawn by ``seed``; after each ``span`` of steps a judgement.

    ``rate``: of the first step, by the loss before it. ``name``: what is said of it while it runs.
    """

    name: str
    steps: int
    sequences: int
    span: int
    seed: int
    rate: Callable[[float], float]

    @property
    def wanted(self) -> int:
        """Sequences for every step to see its own."""
        return JUDGES + self.steps * self.sequences

    def check(self, sequences: int, text: str, option: str, mend: str) -> None:
        """Raises CalibrationError for so few of them that there are not enough to learn from and to judge by."""
        if sequences < JUDGES + self.sequences:
            raise CalibrationError(
                f"{text}: {sequences} sequences, but {asked(option)} needs {JUDGES} to judge by and {self.sequences} "
                f"to learn from; {mend}, or give {asked(option, 0)}"
            )


@dataclass(frozen=True)
class Descended:
    """The tensors, and their loss on the judges' sequences before and after, in nats per token."""

    tensors: list[Tensor]
    before: float
    after: float


def descend(
    knobs: Sequence[Knobs], student: Student, orders: RowOrders, schedule: Schedule, turns: Mapping[str, Rotation] = NO_TURNS
) -> Descended:
    """Move ``knobs`` along the ``schedule``; JUDGES of the student's sequences decide what is kept. ``turns``: by tensor's name.

    Steps take the others in an order that the seed draws, and when all were seen, again. The rate falls to nothing at the last
    step; a span that did not help is taken back, and the rate halved.
    """
    crew = _Tensors(knobs, student, orders, turns)
    judges, learned = _divided(student.sequences)
    assert len(learned) >= schedule.sequences, f"{student.sequences} sequences"
    drawn = np.random.default_rng(schedule.seed).permutation(learned)
    crew.show()
    before = best = student.loss(judges)
    rate = schedule.rate(before)
    for step in track(range(1, schedule.steps + 1), schedule.name):
        places = np.arange((step - 1) * schedule.sequences, step * schedule.sequences)
        crew.move(student.gradients(drawn.take(places, mode="wrap")), rate * (1 - (step - 1) / schedule.steps), step)
        if step % schedule.span == 0 or step == schedule.steps:
            loss = student.loss(judges)
            if loss < best:
                best = loss
                crew.keep()
            else:
                rate /= 2
                crew.take_back()
    return Descended([one.tensor for one in knobs], before, best)


def put_plain(block: Block, student: Student, kit: Kit) -> None:
    """Whatever of ``block`` is not rounded, as it will be stored."""
    for name, value in block.tensors.items():
        if name not in block.rounded:
            student.put(name, kit.orders.to_source(name, value), learns=False)


def put_stored(block: Block, student: Student, kit: Kit) -> None:
    """All of ``block`` as it would be stored now."""
    put_plain(block, student, kit)
    for name, rounded in block.rounded.items():
        student.put(name, kit.orders.to_source(name, block.stored(name, rounded.tensor).dense()), learns=False)


def judges_of(sequences: int) -> NDArray[np.intp]:
    """Those of so many sequences that judge."""
    return np.arange(JUDGES) * sequences // JUDGES


def _divided(sequences: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Those that judge, and those that steps take."""
    judges = judges_of(sequences)
    return judges, np.setdiff1d(np.arange(sequences), judges)


class _Tensors:
    """All tensors at once: numpy lets go of the interpreter while it computes."""

    def __init__(self, knobs: Sequence[Knobs], student: Student, orders: RowOrders, turns: Mapping[str, Rotation]) -> None:
        self._knobs, self._student, self._orders, self._turns = knobs, student, orders, turns

    def show(self) -> None:
        """Put every weight into the student."""
        self._everybody(self._show)

    def keep(self) -> None:
        self._everybody(lambda knobs: knobs.keep())

    def take_back(self) -> None:
        def one(knobs: Knobs) -> None:
            if knobs.moves:
                knobs.take_back()
                self._show(knobs)

        self._everybody(one)

    def move(self, gradients: Mapping[str, F32], rate: float, step: int) -> None:
        """One step for every tensor that has a gradient F32[OC, IC] (or F32[n]), in the source's row order; the others stand."""

        def one(knobs: Knobs) -> None:
            name = knobs.tensor.name
            if name in gradients:
                knobs.move(turned(self._orders.to_target(name, gradients[name]), self._turns.get(name)), rate, step)
                self._show(knobs)

        self._everybody(one)

    def _show(self, knobs: Knobs) -> None:
        name = knobs.tensor.name
        weight = turned_back(weight_of(knobs.tensor), self._turns.get(name))
        self._student.put(name, self._orders.to_source(name, weight), learns=knobs.moves)

    def _everybody(self, work: Callable[[Knobs], None]) -> None:
        in_threads(work, self._knobs)
