"""Steps down a slope that only a model in torch knows, for everything that a quantized tensor can move, all tensors side by side.

What moves and by which rule is the knobs' business, what is lost the student's. Sequences that no step saw decide which state
is kept, so a descent never loses on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantize.architecture.families import FoldSites
from quantize.block import Block, Kit, Student
from quantize.checkpoint.row_order import RowOrders
from quantize.errors import CalibrationError, asked
from quantize.progress import track
from quantize.turn import Turn
from quantize.types import F32, Tensor
from quantize.workers import in_threads

JUDGES = 8  # sequences that no step sees, spread over the text: its end may be of another kind than its beginning


class Knobs(Protocol):
    """What can be moved in one tensor."""

    @property
    def tensor(self) -> Tensor:
        """As a file would store it now."""

    @property
    def weight(self) -> F32:
        """What it stands for in the student, F32[OC, IC] or F32[n]."""

    @property
    def moves(self) -> bool:
        """Whether there is anything to move that could help."""

    def move(self, gradient: F32, rate: float, step: int) -> None:
        """Step number ``step``, from 1; ``gradient`` is that of the weights, F32[OC, IC] or F32[n]."""

    def keep(self) -> None:
        """This is where ``take_back`` goes."""

    def take_back(self) -> None:
        """As at the last ``keep``, or at the beginning."""


@dataclass(frozen=True, eq=False)
class TurnedKnobs:
    """Those of a tensor whose input is turned: what the student has is led back, its slopes are turned."""

    knobs: Knobs
    turn: Turn

    @property
    def tensor(self) -> Tensor:
        """See Knobs: as stored, turned."""
        return self.knobs.tensor

    @property
    def weight(self) -> F32:
        """See Knobs."""
        return self.turn.back(self.knobs.weight)

    @property
    def moves(self) -> bool:
        """See Knobs."""
        return self.knobs.moves

    def move(self, gradient: F32, rate: float, step: int) -> None:
        """See Knobs."""
        self.knobs.move(self.turn.apply(gradient), rate, step)

    def keep(self) -> None:
        """See Knobs."""
        self.knobs.keep()

    def take_back(self) -> None:
        """See Knobs."""
        self.knobs.take_back()


def led_back(knobs: Iterable[Knobs], turns: Mapping[str, Turn]) -> list[Knobs]:
    """With those of turned tensors, by name, as a student wants them."""
    return [TurnedKnobs(one, turns[one.tensor.name]) if one.tensor.name in turns else one for one in knobs]


class Shared(Protocol):
    """What several knobs have in common, moved when each of them has moved."""

    def move(self, rate: float) -> None:
        """One step, by what their steps have told."""

    def keep(self) -> None:
        """As of Knobs."""

    def take_back(self) -> None:
        """As of Knobs; theirs is apart."""


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
    knobs: Sequence[Knobs], student: Student, orders: RowOrders, schedule: Schedule, shared: Sequence[Shared] = ()
) -> Descended:
    """Move ``knobs``, and what they have ``shared``, along the ``schedule``; JUDGES of the sequences decide what is kept.

    Steps take the others in an order that the seed draws, and when all were seen, again. The rate falls to nothing at the last
    step; a span that did not help is taken back, and the rate halved.
    """
    crew = _Tensors(knobs, shared, student, orders)
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


def put_folded(
    student: Student, at: FoldSites | None, tensors: Mapping[str, F32], norms: Mapping[str, F32], orders: RowOrders
) -> None:
    """All ``tensors`` of a block as they are stored, by name in the target's row order; ``norms`` are the source's own.

    Where the student has no place for a norm, what reads its channels is put as the source's norm needs it.
    """
    put = dict(tensors)
    if at is not None:
        offset = np.float32(at.gain_offset)
        for norm, linears in at.norms.items():
            if not student.holds(norm):
                plain, made = norms[norm] + offset, tensors[norm] + offset
                factor: F32 = np.divide(made, plain, out=np.ones_like(plain), where=plain != 0)
                put |= {name: tensors[name] * factor for name in linears}
    for name, value in put.items():
        student.put(name, orders.to_source(name, value), learns=False)


def judges_of(sequences: int) -> NDArray[np.intp]:
    """Those of so many sequences that judge."""
    return np.arange(JUDGES) * sequences // JUDGES


def _divided(sequences: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Those that judge, and those that steps take."""
    judges = judges_of(sequences)
    return judges, np.setdiff1d(np.arange(sequences), judges)


class _Tensors:
    """All tensors at once: numpy lets go of the interpreter while it computes."""

    def __init__(self, knobs: Sequence[Knobs], shared: Sequence[Shared], student: Student, orders: RowOrders) -> None:
        self._knobs, self._shared, self._student, self._orders = knobs, shared, student, orders

    def show(self) -> None:
        """Put every weight into the student."""
        self._everybody(self._show)

    def keep(self) -> None:
        for shared in self._shared:
            shared.keep()
        self._everybody(lambda knobs: knobs.keep())

    def take_back(self) -> None:
        for shared in self._shared:
            shared.take_back()

        def one(knobs: Knobs) -> None:
            if knobs.moves:
                knobs.take_back()
                self._show(knobs)

        self._everybody(one)

    def move(self, gradients: Mapping[str, F32], rate: float, step: int) -> None:
        """One step for every tensor that has a gradient F32[OC, IC] (or F32[n]), in the source's row order; the others stand."""

        moving = [knobs for knobs in self._knobs if knobs.tensor.name in gradients]

        def one(knobs: Knobs) -> None:
            name = knobs.tensor.name
            knobs.move(self._orders.to_target(name, gradients[name]), rate, step)

        in_threads(one, moving)
        for shared in self._shared:
            shared.move(rate)
        in_threads(self._show, moving)

    def _show(self, knobs: Knobs) -> None:
        name = knobs.tensor.name
        self._student.put(name, self._orders.to_source(name, knobs.weight), learns=knobs.moves)

    def _everybody(self, work: Callable[[Knobs], None]) -> None:
        in_threads(work, self._knobs)
