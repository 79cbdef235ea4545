"""A decoder block on its way from the source's weights to what a file stores, and what its steps are given beside it.

A block is a value: a step takes one and gives the next. Embedding, head and final norm are blocks of one tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

from numpy import intp
from numpy.typing import NDArray

from quantize.activations import Activation
from quantize.architecture.families import FoldSites
from quantize.checkpoint.row_order import RowOrders
from quantize.fold import Fold
from quantize.rounding import Rounder
from quantize.turn import Turn
from quantize.types import F32, Axis, InputStats, Need, QuantizedTensor, Target, Tensor, TensorPlan
from quantize.weight import Part, StoredWeight


class Rounded(NamedTuple):
    """A weight rounded on one axis, by which rounder, and its output loss if that is known."""

    tensor: QuantizedTensor
    rounder: str
    loss: float | None


@dataclass(frozen=True)
class AxisChoice:
    """The axis that won and the loss of every candidate."""

    axis: Axis
    loss: Mapping[Axis, float]


@dataclass(frozen=True, eq=False)
class Block:
    """All by name. ``plans``: of what is quantized. ``tensors``: every one, F32, rows in the target's order, in model order.

    ``sites``: names that see the same input. ``fold_sites``: None where no basis can change. ``folds``: those that were applied,
    one after the other. ``tried``, ``choices`` and ``rounded`` come with the steps, ``beside`` with parts that are added to a
    rounded weight; ``activations``: what rounds a linear's input, where not the runtime by itself, and ``activation_loss`` of
    every word that was tried; ``report`` is what the store says of it.
    """

    plans: Mapping[str, TensorPlan]
    tensors: Mapping[str, F32]
    stats: Mapping[str, InputStats]
    sites: tuple[tuple[str, ...], ...] = ()
    fold_sites: FoldSites | None = None
    folds: tuple[Fold, ...] = ()
    tried: Mapping[str, Mapping[Axis, Rounded]] = field(default_factory=dict)
    choices: Mapping[str, AxisChoice] = field(default_factory=dict)
    rounded: Mapping[str, Rounded] = field(default_factory=dict)
    activations: Mapping[str, Activation] = field(default_factory=dict)
    activation_loss: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    beside: Mapping[str, Beside] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    def folded(self, fold: Fold) -> Block:
        """In the new basis; what stands beside a weight is chosen in the last one."""
        assert not self.beside.keys() & {*fold.made, *fold.read}, "a basis is changed before columns are kept"
        tensors = {name: fold.tensor(name, value) for name, value in self.tensors.items()}
        return replace(self, tensors=tensors, stats=fold.stats(self.stats), folds=(*self.folds, fold))

    def in_source_basis(self, name: str, weight: F32) -> F32:
        """F32[OC, IC] in this block's basis -> what stands in for the source's weight in the source's model."""
        for fold in reversed(self.folds):
            weight = fold.back(name, weight)
        return weight

    def stored(self, name: str, rounded: Tensor) -> StoredWeight:
        """A rounded weight with what stands beside it."""
        beside, activation = self.beside.get(name), self.activations.get(name)
        if beside is not None:
            first, *others = beside.stored(name, rounded).parts
            return StoredWeight((replace(first, activation=activation), *others))
        turn = self.plans[name].turn if isinstance(rounded, QuantizedTensor) else None
        return StoredWeight((Part(rounded, turn=turn, activation=activation),))

    def reporting(self, key: str, *entries: Any) -> Block:  # noqa: ANN401 - whatever JSON holds
        """The same, ``entries`` after those of ``key`` so far."""
        return replace(self, report={**self.report, key: [*self.report.get(key, []), *entries]})


def as_multiplied(stats: Mapping[str, InputStats], plans: Mapping[str, TensorPlan]) -> dict[str, InputStats]:
    """Of inputs after their turns, by weight name; what shared a Hessian and a turn shares one again."""
    shared, out = dict[tuple[int, Turn], InputStats](), {}
    for name, one in stats.items():
        turn = plans[name].turn if name in plans else None
        if turn is not None:
            key = id(one.hessian), turn
            if key not in shared:
                shared[key] = one.turned(turn)
            one = replace(one, hessian=shared[key].hessian, visit=None, inputs=shared[key].inputs)
        out[name] = one
    return out


class Beside(Protocol):
    """What a step keeps of a weight beside the rounded one."""

    def stored(self, name: str, rounded: Tensor) -> StoredWeight:
        """All parts, of which ``rounded`` is the first."""

    def loss(self, stored: F32) -> float:
        """Of F32[OC, IC], all parts together."""


class Student(Protocol):
    """A network with other weights than the source's, over some sequences, and how far its outputs are from the source's."""

    @property
    def sequences(self) -> int:
        """How many there are to choose from."""

    def holds(self, name: str) -> bool:
        """Whether it has a place for ``name``; what is put elsewhere changes nothing."""

    def put(self, name: str, weight: F32, learns: bool) -> None:
        """Let F32[...] stand in for ``name``, Hugging Face row order; ``gradients`` covers what ``learns``."""

    def loss(self, sequences: NDArray[intp]) -> float:
        """Mean loss over those sequences, in nats per token."""

    def gradients(self, sequences: NDArray[intp]) -> Mapping[str, F32]:
        """Of the mean loss over those sequences, for every weight that learns."""


class BlockStudent(Student, Protocol):
    """That of one block."""

    def matching(self) -> Matching:
        """The same, which from now on is to give outputs of the statistics that it gives now."""


class Matching(Student, Protocol):
    """A student whose slopes are those of a distance of its outputs' statistics, not of the loss, which still judges."""

    def distance(self, sequences: NDArray[intp]) -> float:
        """Mean over those sequences of how far each channel's mean and variance over tokens are from what they were."""


class SourceRun(Protocol):
    """The source's own block, text passing through it."""

    @property
    def index(self) -> int:
        """Of the block."""

    @property
    def student(self) -> BlockStudent | None:
        """What it is left with counts as this block for the next one's."""

    def scope_loss(self, name: str, candidates: list[F32]) -> list[float]:
        """Mean squared change of the output around ``name`` when F32[OC, IC] ``candidates`` stand in for it."""

    def commit(self, name: str, weight: F32) -> None:
        """From now on ``name`` counts as F32[OC, IC] in its siblings' scope losses."""


@dataclass(frozen=True, eq=False)
class Kit:
    """What a step may use beside its block: what was asked for, the target, and the source's block where it runs.

    ``text``: the calibration text's name. ``steps``: of learning, for each block. ``depth``: where the block is, from 0, the
    first, to 1, behind the last.
    """

    target: Target
    orders: RowOrders
    rounders: Mapping[str, Rounder]  # by method
    max_slowdown: float
    seed: int = 0
    steps: int = 0
    text: str = ""
    run: SourceRun | None = None
    depth: float = 0.0


class Step(Protocol):
    """One thing that a method does to a block."""

    @property
    def needs(self) -> Need:
        """What it has to know; a run is asked for the most that any step needs."""

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """The block after it; ``names``: the linears whose method it belongs to."""


class Division(NamedTuple):
    """What a weight's parts follow from. ``hidden``: channels of the residual stream. ``float_columns``: of a linear that reads
    it, which float16 keeps; None: the method's own. ``bits``: of a weight, on average."""

    hidden: int
    float_columns: int | None
    bits: float


@runtime_checkable
class DividingStep(Protocol):
    """What a method decides of a weight's parts from its header alone."""

    @property
    def needs(self) -> Need:
        """As of a Step."""

    def divided(self, plan: TensorPlan, wanted: Division) -> TensorPlan:
        """The plan, which has one candidate, with its parts. Raises ConfigError."""


@runtime_checkable
class PlanStep(Protocol):
    """One thing that a method decides of a weight before any block is made."""

    @property
    def needs(self) -> Need:
        """As of a Step."""

    def planned(self, plan: TensorPlan, weight: F32, target: Target) -> TensorPlan:
        """The plan with other grids for F32[OC, IC], or for a stack F32[experts, OC, IC]."""
