"""The nouns of the project: what flows between reading, quantizing, writing and checking.

Shapes are written as ``F32[OC, IC]``: a numpy array of that dtype, OC output channels (rows) by IC input channels
(columns), as in ``torch.nn.Linear.weight``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from quantize.activations import ActivationGrid
from quantize.formula import Formula
from quantize.inputs import Inputs
from quantize.turn import Turn
from quantize.workers import Once

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Array = NDArray[Any]
Params = Mapping[str, Array]
FINE_BITS = 8  # a tensor of that many bits has nothing to gain from care
TINY = 2.0**-100  # times a start, its reciprocal is still a float32; no file stores a scale that small


class Axis(StrEnum):
    """Which way a group of weights that share a scale runs."""

    PER_OC = "per_oc"  # inside one output channel, along IC: what everybody stores
    PER_IC = "per_ic"  # inside one input channel, along OC: isolates outlier channels (arXiv 2309.15531)


class RowOrder(StrEnum):
    """Order of the rows of q and k: each head's two rotary halves apart (Hugging Face), or interleaved (llama.cpp's llama)."""

    HF = "hf"
    GGML = "ggml"


class Need(IntEnum):
    """What a step has to know beside the weights; each includes those before it."""

    WEIGHTS = 0
    IMPORTANCE = 1  # of each input channel: a diagonal, as an importance matrix has it
    HESSIAN = 2  # the whole second moment of the input
    BLOCK = 3  # the source's decoder block, run
    LEARNING = 4  # that block with other weights in it, and what its output loses by them
    MODEL = 5  # the whole source, run


@dataclass(frozen=True)
class TensorSpec:
    """What a header says of a tensor: ``dtype``, a word as "BF16" or "Q4_1"; ``kept``, why it has to stay floats; ``partner``, a
    tensor that stays floats if this one does, and the other way round."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kept: str = ""
    partner: str = ""

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))


class Visit(NamedTuple):
    """Input channels in the order in which GPTQ rounds them, intp[IC], and the upper Cholesky factor of the damped inverse of
    their second moment in that order, F32[IC, IC]."""

    order: NDArray[np.intp]
    factor: F32


@dataclass(frozen=True, eq=False)
class InputStats:
    """Second moment of a linear's input: ``hessian`` F32[IC, IC] = E[x xT], tokens weighted; ``n_tokens`` seen.

    Where only its diagonal is known (an importance matrix), ``hessian`` is that diagonal, F32[IC]. ``row_weight`` F32[OC]:
    what a unit of squared output error costs at the model's output, in nats per token; None if that is not known.
    ``visit``: what GPTQ makes of this Hessian, once for all that share it. ``inputs``: some of what was seen, where torch ran.
    """

    hessian: F32
    n_tokens: int
    row_weight: F32 | None = None
    visit: Once[Visit] | None = None
    inputs: Inputs | None = None

    @property
    def importance(self) -> F32:
        """F32[IC]: the mean square of each input channel."""
        return self.hessian if self.hessian.ndim == 1 else np.diag(self.hessian)

    def turned(self, turn: Turn) -> InputStats:
        """Those of the turned input. Where only a diagonal is known, all channels of a run matter alike afterwards."""
        inputs = None if self.inputs is None else self.inputs.turned(turn)
        return replace(self, hessian=turn.moment(self.hessian), visit=None, inputs=inputs)


@dataclass(frozen=True, eq=False)
class Curvature:
    """What errors at the linears' outputs cost at the model's output, measured on some tokens.

    ``tokens``: F32[n_tokens], mean 1, by input site (the first linear that sees that input). ``rows``:
    F32[OC] in nats per token, by weight name. ``tables``: whole statistics of the embedding and of an untied head.
    ``blocks``: the two of each decoder block's output, F32[n_tokens] and F32[hidden], by its number.
    """

    tokens: Mapping[str, F32]
    rows: Mapping[str, F32]
    tables: Mapping[str, InputStats]
    blocks: Mapping[int, tuple[F32, F32]] = field(default_factory=dict)


class Grid(Protocol):
    """The values that a target format can store. Implementations are frozen dataclasses; algorithms ask nothing else."""

    @property
    def name(self) -> str:
        """Key in GRIDS."""

    @property
    def bits(self) -> int:
        """Codes are below 2**bits; of words the whole bits that a weight takes, where codes are those of ``formula.levels``."""

    @property
    def group_size(self) -> int:
        """Weights that share one (scale, zero)."""

    @property
    def block_size(self) -> int:
        """Weights that are fitted together: group_size, or a super-block."""

    @property
    def symmetric(self) -> bool:
        """Whether the zero is the same for every group."""

    @property
    def bits_per_weight(self) -> float:
        """As the target stores full groups: codes, scales and zeros."""

    @property
    def formula(self) -> Formula:
        """What encode and decode do."""

    def fit(self, blocks: F32, importance: F32 | None = None) -> Params:
        """Params for blocks F32[..., block_size], as the file stores them, in its dtypes, each shaped [...]."""

    def exact(self, blocks: F32) -> Params | None:
        """Params with which blocks F32[..., block_size] are decoded as they are, bit for bit; None if none are found."""

    def scale_zero(self, params: Params) -> tuple[F32, F32]:
        """What encode and decode use, F32[..., block_size // group_size] each."""

    def encode(self, x: F32, scale: F32, zero: F32, importance: F32 | None = None) -> U8:
        """The nearest code, elementwise; all broadcast. ``importance``: of weights along the last axis that share a code."""

    def decode(self, codes: U8, scale: F32, zero: F32) -> F32:
        """The target's own formula, bit for bit, elementwise."""


@dataclass(frozen=True)
class PartPlan:
    """So many input channels of a weight, on ``grid``; None: in float16."""

    count: int
    grid: Grid | None


@dataclass(frozen=True)
class TensorPlan:
    """What was decided for one tensor from its header alone.

    ``candidates``: the grid for every axis that fits; of several AdaDim chooses; none means floats of ``dtype``. ``method``:
    key of METHODS. ``float_columns``: input channels that float16 keeps beside the codes. ``parts``: of which it is made instead,
    each of other input channels, the quietest first; the first is on the grid of the one candidate. ``turn``: of the input, only
    PER_OC goes with it. ``turn_blocks``: channels of a block, if a step finds one. ``activations``: words, one rounds the input.
    """

    name: str
    shape: tuple[int, ...]
    candidates: Mapping[Axis, Grid] = field(default_factory=dict)
    method: str = "rtn"
    dtype: str = "F32"
    note: str = ""
    float_columns: int = 0
    parts: tuple[PartPlan, ...] = ()
    turn: Turn | None = None
    turn_blocks: int = 0
    activations: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """The one representation that every packer consumes.

    ``codes`` U8[rows, cols], unpacked, below the number of levels; groups always run along the last axis: PER_OC has rows=OC and
    cols=IC, PER_IC rows=IC and cols=OC. ``params``: exactly what the file stores, each [rows, ceil(cols / block_size), ...].
    """

    name: str
    codes: U8
    axis: Axis
    grid: Grid
    params: Params

    def __post_init__(self) -> None:
        rows, cols = self.codes.shape
        blocks = -(-cols // self.grid.block_size)
        if self.codes.dtype != np.uint8:
            raise ValueError(f"{self.name}: codes are {self.codes.dtype}, expected uint8")
        if self.codes.size and int(self.codes.max()) >= len(self.grid.formula.levels):
            raise ValueError(f"{self.name}: code {int(self.codes.max())} does not fit {self.grid.bits} bits")
        for key, value in self.params.items():
            if value.shape[:2] != (rows, blocks):
                raise ValueError(f"{self.name}: {key} is {value.shape}, expected {(rows, blocks)} for codes {(rows, cols)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(OC, IC), whatever the axis."""
        return self.codes.shape[:: 1 if self.axis is Axis.PER_OC else -1]


@dataclass(frozen=True, eq=False)
class PlainTensor:
    """A tensor that is kept as floats: ``values`` F32, F16 or BF16 (as uint16 bits, ``dtype`` says "BF16")."""

    name: str
    values: Array
    dtype: str


Tensor = QuantizedTensor | PlainTensor


class Target(Protocol):
    """What a runtime can hold; instances live in ``exporter.targets``, so quantize never names a runtime."""

    @property
    def name(self) -> str:
        """The word after --target."""

    @property
    def row_order(self) -> RowOrder:
        """The order of q and k rows in which this target wants its weights quantized."""

    @property
    def default_group_size(self) -> int:
        """Group size of the int grid when none is asked for."""

    def grid_name(self, bits: int) -> str:
        """The default grid of that width. Raises ConfigError where the target has none."""

    def lacks(self, grid: Grid, axis: Axis) -> str | None:
        """None if weights can be stored so, whatever their shape, else the reason."""

    @property
    def lacks_parts(self) -> str | None:
        """None if a weight may be a sum of several parts, else the reason."""

    @property
    def activations(self) -> tuple[str, ...]:
        """Words of ACTIVATIONS for linears that are bytes under one scale a row: the first has the bytes that plans count."""

    @property
    def lacks_turns(self) -> str | None:
        """None if a weight's input may be turned by a ``Rotation``, else the reason, and what to take instead."""

    @property
    def lacks_block_turns(self) -> str | None:
        """The same of a ``BlockTurn``, which takes no operator of its own."""

    def refuses(self, grid: Grid, axis: Axis, shape: tuple[int, ...]) -> str | None:
        """None if a weight (OC, IC) or a stack [experts, OC, IC] fits where nothing is lacking, else why not, and what would."""

    def fallback(self, grid: Grid, axis: Axis, shape: tuple[int, ...]) -> Grid | None:
        """The next grid that fits where ``grid`` does not; None means floats."""

    def stored_bytes(self, grid: Grid, axis: Axis, shape: tuple[int, ...]) -> int:
        """Bytes of codes, scales and zeros of a linear (OC, IC), or of a stack, in the file."""

    def decode_cost(self, grid: Grid, axis: Axis, shape: tuple[int, ...], turn: Turn | None = None) -> float:
        """Estimated seconds to multiply one row of activations, turned before."""

    def columns_cost(self, count: int, shape: tuple[int, ...]) -> float:
        """Estimated seconds more of a row, where float16 keeps so many input channels of a weight (OC, IC) beside its codes."""

    def rounds(self, grid: Grid, shape: tuple[int, ...]) -> ActivationGrid | None:
        """What the runtime by itself rounds the input of such a weight to, where plans weigh that; else None."""

    def rounding_cost(self, activation: str, shape: tuple[int, ...]) -> float:
        """Estimated seconds more, of a row decoded and one of a prompt, where the input is rounded so, a word of ACTIVATIONS."""
