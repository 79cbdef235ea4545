"""What plan.json and the tensor files beside it may say; behind this door nobody has to doubt a store."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from quantize.activations import ACTIVATIONS, Activation
from quantize.block_turn import FoundTurn
from quantize.blocks import matrix
from quantize.errors import StoreError, shown
from quantize.grids import GridJson
from quantize.outside import MIB, Count, Door, Size
from quantize.turn import LEAST, Rotation, orders_of
from quantize.types import TINY, Axis, RowOrder

PLAN_DOOR = Door(StoreError, "plan.json is damaged, quantize again")
ASSET_DOOR = Door(StoreError, "the store is damaged; quantize again", 512 * MIB)
WIDEST = 1 << 16  # a group of a channel that is shorter: more is no group size that anybody asks for

TensorName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\Z")]  # a file is named after it
Word = Annotated[str, msgspec.Meta(max_length=1000)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Digits = Annotated[str, msgspec.Meta(pattern=r"^[01]*\Z")]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Finite = Annotated[float, msgspec.Meta(gt=-3.5e38, lt=3.5e38)]
Shape = Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=4)]
Dtype = Literal["F32", "F16", "BF16"]


class PlainJson(msgspec.Struct):
    """A tensor that is kept as floats."""

    name: TensorName
    shape: Shape
    chunks: Count
    dtype: Dtype
    note: str = ""
    sha256: list[Sha256] = msgspec.field(default_factory=list)
    inputs: Count = 0

    def __post_init__(self) -> None:
        _check_chunks(self.chunks, self.shape[0])
        _check_part(self.inputs, self.shape, self.chunks)


class TurnJson(msgspec.Struct):
    """A turn of input channels."""

    size: Size
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed is {self.seed}, not a whole number of 64 bits")

    def make(self) -> Rotation:
        """The turn."""
        return Rotation(self.size, self.seed)

    def check(self, shape: tuple[int, ...], axis: Axis) -> None:
        """Raises ValueError for none of the input channels of a weight (OC, IC), or none that is known here."""
        if len(shape) != 2 or shape[1] % self.size or axis is Axis.PER_IC or not self.size >= LEAST or not orders_of(self.size):
            raise ValueError(f"shape {shape} {axis} and a turn of {self.size} input channels, which is not known here")


class FoundTurnJson(msgspec.Struct):
    """A turn of input channels in blocks. ``site``: the linear whose file in the store has its arrays; "" where that is still to
    be made, and in a file for a runtime, where the graph tells."""

    size: Size
    site: TensorName = ""

    def make(self) -> FoundTurn:
        """What is known of the turn."""
        return FoundTurn(self.size, self.site)

    def check(self, shape: tuple[int, ...], axis: Axis) -> None:
        """Raises ValueError for none of the input channels of a weight (OC, IC)."""
        if len(shape) != 2 or axis is Axis.PER_IC or not self.make().fits(shape[1]):
            raise ValueError(f"shape {shape} {axis} and a turn in blocks of {self.size} input channels, which is not known here")


class ActivationJson(msgspec.Struct):
    """What rounds a linear's input."""

    name: Word
    scale: Finite = 0.0
    zero_point: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0

    def __post_init__(self) -> None:
        grid = ACTIVATIONS.get(self.name)
        if grid is None:
            raise ValueError(f"activation '{shown(self.name)}' is none of {', '.join(ACTIVATIONS)}")
        if grid.static and (np.float32(self.scale) < TINY or self.zero_point >> grid.bits):
            raise ValueError(f"scale {self.scale} and zero point {self.zero_point} are none of {self.name}")

    def make(self) -> Activation:
        """The activation."""
        return Activation(self.name, self.scale, self.zero_point)


class QuantizedJson(GridJson, kw_only=True):
    """A tensor on a grid."""

    name: TensorName
    shape: Shape
    chunks: Count
    axis: Axis
    rounder: Word
    loss: dict[Axis, Finite]
    note: str = ""
    sha256: list[Sha256] = msgspec.field(default_factory=list)
    inputs: Count = 0
    turn: TurnJson | None = None
    found_turn: FoundTurnJson | None = None
    activation: ActivationJson | None = None
    activation_loss: dict[Word, Finite] = msgspec.field(default_factory=dict)
    float_columns: Count = 0

    def __post_init__(self) -> None:
        grid = self.make()
        _check_part(self.inputs, self.shape, self.chunks)
        check_turns(self.turn, self.found_turn, self.shape, self.axis)
        turn = self.turn or self.found_turn
        if turn is not None and self.inputs:
            raise ValueError(f"a turn of {turn.size} input channels of a part, which takes some of them")
        if len(self.shape) != 2 and (len(self.shape) != 3 or self.axis is Axis.PER_IC):
            raise ValueError(f"shape {self.shape} on the grid {self.grid} {self.axis}, where two lengths are needed")
        rows, cols = matrix(self.shape) if self.axis is Axis.PER_OC else matrix(self.shape)[::-1]
        _check_chunks(self.chunks, rows)
        if grid.group_size > max(2 * cols, WIDEST):
            raise ValueError(f"group_size {grid.group_size} for groups that run along {cols} weights")


def check_turns(turn: TurnJson | None, found: FoundTurnJson | None, shape: tuple[int, ...], axis: Axis) -> None:
    """Raises ValueError for a turn that no input of a weight (OC, IC) has, and for two."""
    if turn is not None and found is not None:
        raise ValueError("two turns of the same input channels")
    for one in (turn, found):
        if one is not None:
            one.check(shape, axis)


def _check_chunks(chunks: int, rows: int) -> None:
    if chunks > rows:
        raise ValueError(f"chunks is {chunks}, but there are {rows} rows to cut")


def _check_part(inputs: int, shape: tuple[int, ...], chunks: int) -> None:
    if inputs and (len(shape) != 2 or shape[1] > inputs or chunks > 1):
        raise ValueError(f"shape {shape} in {chunks} chunks for a part of {inputs} input channels")


class SourceJson(msgspec.Struct):
    """What was quantized."""

    name: Word
    sha256: Sha256


class ConfigJson(msgspec.Struct):
    """What was asked for, as far as it is told again."""

    method: Word
    selection: Word
    token_weight: Word
    seed: int = 0
    block_steps: Count = 0
    tune_steps: Count = 0
    imatrix: Word | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed is {self.seed}, not a whole number of 64 bits")


class CalibrationJson(msgspec.Struct):
    """The text that was run over."""

    text: Word
    sha256: Sha256
    tokens: Count
    sequence: Count = 0
    rank_poor: list[Word] = msgspec.field(default_factory=list)


class ImatrixJson(msgspec.Struct):
    """The importance matrix that stood in for a text."""

    name: Word
    sha256: Sha256
    datasets: list[str]
    chunks: Bytes


class ChangesJson(msgspec.Struct, kw_only=True):
    """A number for each layer, before something and after it."""

    before: Annotated[list[Finite], msgspec.Meta(min_length=1)]
    after: list[Finite]

    def __post_init__(self) -> None:
        if len(self.before) != len(self.after):
            raise ValueError(f"{len(self.before)} losses before and {len(self.after)} after")


class BlocksJson(ChangesJson):
    """What block-wise rounding did: a loss for each layer."""

    steps: Count


class NormsJson(msgspec.Struct):
    """What tweaking norms did: to how far a block's output is from the source's statistics, and to the loss."""

    distance: ChangesJson
    loss: ChangesJson


class TuningJson(msgspec.Struct):
    """What tuning the floats did."""

    steps: Count
    before: Finite
    after: Finite


class BudgetJson(msgspec.Struct):
    """The size that was asked for, and what came of it."""

    target_bytes: Annotated[int, msgspec.Meta(ge=1, le=2**62)]
    bytes: Bytes
    predicted_kl: Finite


class PlanJson(msgspec.Struct):
    """plan.json; its tensors one by one, as ``PlainJson`` or ``QuantizedJson``."""

    target: Word
    row_order: RowOrder
    source: SourceJson
    config: ConfigJson
    tensors: list[dict[str, Any]]
    version: Word = ""
    calibration: CalibrationJson | None = None
    imatrix: ImatrixJson | None = None
    blocks: BlocksJson | None = None
    norms: NormsJson | None = None
    tuning: TuningJson | None = None
    budget: BudgetJson | None = None
    transforms: dict[Word, Digits] = msgspec.field(default_factory=dict)
    notes: list[str] = msgspec.field(default_factory=list)
    assets: dict[str, Sha256] = msgspec.field(default_factory=dict)


def read_record(raw: object, door: Door, where: str) -> PlainJson | QuantizedJson:
    """One tensor's object. Raises the door's error."""
    if isinstance(raw, dict) and "grid" in raw:
        return door.convert(raw, where, QuantizedJson)
    return door.convert(raw, where, PlainJson)
