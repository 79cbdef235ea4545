"""What each runtime can hold and what it costs there: the words after ``--target``.

| target              | PER_OC                        | PER_IC                                                     |
|---------------------|-------------------------------|------------------------------------------------------------|
| llama.cpp           | ggml blocks                   | no: every ggml block runs along IC                         |
| gguf-adadim         | ggml blocks                   | ggml blocks of the transposed weight                       |
| onnxruntime         | one MatMulNBits               | one MatMulNBits per group of output channels (split form)  |
| onnxruntime+adadim  | one MatMulAdaDim, MatMulLevels| one MatMulAdaDim, MatMulLevels for single levels           |
| onnxruntime-w8a8    | MatMul of QDQ, or MatMulNBits | no: a MatMul of integers has one scale an output channel   |

Turned inputs: by a Rotation onnxruntime+adadim alone (RotateAdaDim), by a BlockTurn both of ONNX. Stacks of experts: in ONNX one
QMoE of two of them, PER_OC alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from exporter.onnx_cost import (
    RUNNING_SCALE_BYTES,
    SECONDS_PER_BYTE,
    SECONDS_PER_NODE,
    SECONDS_PER_WEIGHT_IN_BLOCKS,
    SMALLEST_STACK_BLOCK,
    STATIC_NODES,
    block_size,
    columns_seconds,
    linear_bytes,
    linear_nodes,
    linear_seconds,
    stack_bytes,
    static_bytes,
    tile_bytes,
    turn_seconds,
)
from quantize.activations import ACTIVATIONS, BLOCK, IN_BLOCKS, STATIC, Scope
from quantize.activations.grids import Blocks
from quantize.blocks import matrix
from quantize.errors import ConfigError, asked
from quantize.grids import GRIDS
from quantize.grids.int_affine import IntAffine, one_scale
from quantize.grids.lattice import LATTICE_GRIDS
from quantize.grids.levels import Levels
from quantize.turn import Turn
from quantize.types import FINE_BITS, Axis, Grid, RowOrder

GGML_DEFAULT_GRIDS = {2: "q2_k", 3: "q3_k", 4: "q4_0", 5: "q5_0", 8: "q8_0"}
GGML_BLOCK = 32
LEVELS_TARGET = "onnxruntime+adadim"
STATIC_TARGET, STATIC_ACTIVATIONS = "onnxruntime-w8a8", (STATIC, IN_BLOCKS)
# Where rows are no multiple of 256: the next larger block of 32, as llama-quantize chooses it.
GGML_FALLBACKS = dict.fromkeys(("q2_k", "q3_k", "iq4_xs", *(grid.name for grid in LATTICE_GRIDS)), "iq4_nl") | {
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "tq2_0": "q4_0",
}


@dataclass(frozen=True)
class GgufTarget:
    """A GGUF file, whose blocks of 32 or 256 cannot be ragged; ``per_ic`` if it may also hold transposed tensors."""

    name: str
    per_ic: bool
    writer: str = "gguf"
    row_order: RowOrder = RowOrder.GGML
    default_group_size: int = GGML_BLOCK
    activations: tuple[str, ...] = ()

    def grid_name(self, bits: int) -> str:
        """The plainest block of that width. Raises ConfigError for a width without one."""
        if bits not in GGML_DEFAULT_GRIDS:
            known = ", ".join(f"{width} ({grid})" for width, grid in GGML_DEFAULT_GRIDS.items())
            raise ConfigError(f"{asked('bits', bits)}: target {self.name} has no such block format; it has {known}")
        return GGML_DEFAULT_GRIDS[bits]

    def lacks(self, grid: Grid, axis: Axis) -> str | None:
        """None, or why no weight at all can be stored so."""
        if grid.name == "int":
            return f"target {self.name} stores ggml blocks, not the int grid"
        if isinstance(grid, Levels):
            return f"target {self.name} stores ggml blocks, of which iq4_nl is the nearest to {grid.name}; {LEVELS_TARGET} can"
        if axis is Axis.PER_IC and not self.per_ic:
            return f"target {self.name} cannot hold per-IC groups: every ggml block runs along IC; gguf-adadim can"
        return None

    @property
    def lacks_parts(self) -> str:
        """A tensor of a GGUF is a whole weight."""
        return f"target {self.name} stores a weight as one tensor, to which nothing is added; onnxruntime can"

    @property
    def lacks_turns(self) -> str:
        """llama.cpp multiplies the input as it is."""
        return _no_turns(self.name)

    @property
    def lacks_block_turns(self) -> str:
        """See ``lacks_turns``."""
        return f"target {self.name} turns no input of a linear; onnxruntime does"

    def refuses(self, grid: Grid, axis: Axis, shape: tuple[int, ...]) -> str | None:
        """None, or why a weight (OC, IC), or a stack of them, does not fit."""
        shape = matrix(shape)
        length, side = (shape[1], "IC") if axis is Axis.PER_OC else (shape[0], "OC")
        if length % grid.block_size:
            return (
                f"shape {shape}: {axis} rows run along {side} = {length}, which is no multiple of {grid.name}'s block of "
                f"{grid.block_size}; {length - length % grid.block_size} or {length + -length % grid.block_size} would fit"
            )
        return None

    def fallback(self, grid: Grid, axis: Axis, shape: tuple[int, ...]) -> Grid | None:
        """A block of 32 where one of 256 does not fit; None, that is floats, where that does not fit either."""
        smaller = GRIDS.get(GGML_FALLBACKS.get(grid.name, ""))
        if smaller is None or isinstance(smaller, type) or self.refuses(smaller, axis, shape) is not None:
            return None
        return smaller

    def stored_bytes(self, grid: Grid, axis: Axis, shape: tuple[int, ...]) -> int:
        """Bytes in the file: ggml's blocks cost the same on both axes."""
        return round(grid.bits_per_weight * prod(shape) / 8)

    def nodes(self, grid: Grid, axis: Axis, shape: tuple[int, ...]) -> int:
        """llama.cpp multiplies by one tensor at a time."""
        return 1

    def decode_cost(self, grid: Grid, axis: Axis, shape: tuple[int, ...], turn: Turn | None = None) -> float:
        """Estimated seconds to multiply one row of activations: the bytes that are read."""
        assert turn is None, self.lacks_turns
        return SECONDS_PER_BYTE * self.stored_bytes(grid, axis, shape)

    def columns_cost(self, count: int, shape: tuple[int, ...]) -> float:
        """Of none."""
        assert not count, self.lacks_parts
        return 0.0

    def rounds(self, grid: Grid, shape: tuple[int, ...]) -> None:
        """No plan weighs what llama.cpp does."""

    def rounding_cost(self, activation: str, shape: tuple[int, ...]) -> float:
        """llama.cpp rounds as it does."""
        return 0.0


@dataclass(frozen=True)
class OnnxTarget:
    """An ONNX folder, where a ragged last group is legal; ``split``: per-IC needs a node per group of output channels.
    ``activations``: see Target; a linear that takes none of them is what ``onnxruntime`` makes of it."""

    name: str
    split: bool
    writer: str = "onnx"
    row_order: RowOrder = RowOrder.HF
    default_group_size: int = 64
    activations: tuple[str, ...] = ()

    def grid_name(self, bits: int) -> str:
        """``int`` at every width; the grid itself refuses the widths that it has not."""
        return "int"

    def lacks(self, grid: Grid, axis: Axis) -> str | None:
        """None, or why no weight at all can be stored so."""
        if isinstance(grid, Levels):
            if self.split:
                return f"target {self.name} has no operator for {grid.name}; {LEVELS_TARGET} has, and iq4_nl of llama.cpp is near"
            if grid.dims > 1 and axis is Axis.PER_IC:
                return f"target {self.name} multiplies pairs of input channels, and per-IC groups of {grid.name} hold one each"
            return None
        if axis is Axis.PER_IC and self.activations:
            return f"target {self.name} cannot hold per-IC groups: its products have one scale an output channel; onnxruntime can"
        return None if grid.name == "int" else f"target {self.name} stores the int grid, not ggml's {grid.name}"

    @property
    def lacks_parts(self) -> None:
        """A graph adds what its nodes give."""

    @property
    def lacks_turns(self) -> str | None:
        """The stock runtime has no operator for them."""
        return _no_turns(self.name) if self.split else None

    @property
    def lacks_block_turns(self) -> None:
        """They are written in standard operators."""

    def refuses(self, grid: Grid, axis: Axis, shape: tuple[int, ...]) -> str | None:
        """None for a weight (OC, IC): a ragged last group is legal. Of a stack QMoE takes whole blocks along IC alone."""
        if isinstance(grid, Levels):
            if len(shape) > 2:
                return f"a stack of {shape[0]} experts is multiplied by QMoE, which has no levels"
            if shape[1] % grid.dims:
                return f"shape {shape}: {grid.name} takes pairs of input channels, and {shape[1]} is odd"
        if len(shape) == 2:
            return None
        if axis is Axis.PER_IC:
            return f"a stack of {shape[0]} experts is multiplied by QMoE, which has no per-IC groups"
        if shape[-1] % SMALLEST_STACK_BLOCK:
            told = (
                f"a stack of {shape[0]} experts is multiplied by QMoE, whose blocks have {SMALLEST_STACK_BLOCK} weights or more"
            )
            return f"shape {shape}: {told}; {shape[-1]} is no multiple of that"
        return None

    def fallback(self, grid: Grid, axis: Axis, shape: tuple[int, ...]) -> Grid | None:
        """The int grid where levels do not fit; where that does not, none does, so there are but floats."""
        other = IntAffine(grid.bits, self.default_group_size) if isinstance(grid, Levels) else None
        return None if other is None or self.refuses(other, axis, shape) is not None else other

    def stored_bytes(self, grid: Grid, axis: Axis, shape: tuple[int, ...]) -> int:
        """Bytes of codes, scales and zero points in the file."""
        if len(shape) > 2:
            return stack_bytes(grid, shape)
        shape = matrix(shape)
        if self._static(grid, shape):
            return static_bytes(shape)
        return linear_bytes(grid, axis, shape) if self.split else tile_bytes(grid, axis, shape)

    def nodes(self, grid: Grid, axis: Axis, shape: tuple[int, ...]) -> int:
        """Graph nodes that one linear becomes."""
        if self._static(grid, shape):
            return STATIC_NODES
        return linear_nodes(grid, axis, matrix(shape)) if self.split else 1

    def decode_cost(self, grid: Grid, axis: Axis, shape: tuple[int, ...], turn: Turn | None = None) -> float:
        """Estimated seconds for one row of activations; other kernels are taken to be as fast as MatMulNBits."""
        if self._static(grid, shape):
            return SECONDS_PER_BYTE * static_bytes(matrix(shape)) + SECONDS_PER_NODE * STATIC_NODES
        own = 0.0 if turn is None else turn_seconds(turn, shape[-1])
        if self.split:
            return linear_seconds(grid, axis, matrix(shape)) + own
        return SECONDS_PER_BYTE * self.stored_bytes(grid, axis, shape) + SECONDS_PER_NODE + own

    def columns_cost(self, count: int, shape: tuple[int, ...]) -> float:
        """Gather, MatMul and Sum."""
        return columns_seconds(count, matrix(shape)) if count else 0.0

    def rounds(self, grid: Grid, shape: tuple[int, ...]) -> Blocks | None:
        """To bytes in blocks as long as MatMulNBits' own, at accuracy level 4."""
        return Blocks(FINE_BITS, block_size(grid, shape[-1])) if self.activations else None

    def rounding_cost(self, activation: str, shape: tuple[int, ...]) -> float:
        """Blocks of activations want a scale of the weights for each, and in a prompt longer than integers of one scale."""
        if ACTIVATIONS[activation].scope is not Scope.BLOCK:
            return 0.0
        oc, ic = matrix(shape)
        more_scales = SECONDS_PER_BYTE * RUNNING_SCALE_BYTES * oc * (-(-ic // BLOCK) - 1)
        return more_scales + SECONDS_PER_WEIGHT_IN_BLOCKS * oc * ic

    def _static(self, grid: Grid, shape: tuple[int, ...]) -> bool:
        """Whether a weight is multiplied as QuantizeLinear's codes are, by a plan that has seen no data yet."""
        return bool(self.activations) and len(shape) == 2 and one_scale(grid, shape[1])


def _no_turns(target: str) -> str:
    nearest = asked("grid.name", "iq4_nl")
    return f"target {target} turns no input of a linear; onnxruntime+adadim does, and on llama.cpp {nearest} comes nearest"


TARGETS: dict[str, GgufTarget | OnnxTarget] = {
    "llama.cpp": GgufTarget("llama.cpp", per_ic=False),
    "gguf-adadim": GgufTarget("gguf-adadim", per_ic=True),
    "onnxruntime": OnnxTarget("onnxruntime", split=True),
    "onnxruntime+adadim": OnnxTarget("onnxruntime+adadim", split=False),
    STATIC_TARGET: OnnxTarget(STATIC_TARGET, split=True, activations=STATIC_ACTIVATIONS),
}
GGUF_TARGETS, ONNX_TARGETS = (
    tuple(name for name, target in TARGETS.items() if target.writer == word) for word in ("gguf", "onnx")
)
