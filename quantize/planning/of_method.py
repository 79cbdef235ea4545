"""What a method brings to the plan of its linears, a grid and a turn of its own, and the options that contradict it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantize.block_turn import FoundTurn, block_size
from quantize.config import DEFAULT_BITS, GridSpec, QuantizeConfig
from quantize.errors import ConfigError, asked
from quantize.grids.levels import LEAST_GROUP, Levels
from quantize.methods import METHODS, Method
from quantize.transforms import CORRECTIONS
from quantize.turn import LEAST, Rotation
from quantize.types import Grid, Target, TensorPlan


def check_beside(methods: Sequence[Method], config: QuantizeConfig) -> None:
    """Raises ConfigError for options that contradict a method, or of which none takes notice."""
    word = config.around.rounder
    if word is not None and not any(word in method.rounders for method in methods):
        open_ones = ", ".join(name for name, method in METHODS.items() if word in method.rounders)
        raise ConfigError(
            f"{asked('rounder', word)}: {asked('method', config.method)} says already what rounds; drop {asked('rounder')}, or "
            f"choose a system that leaves it open: {open_ones}"
        )
    for method in methods:
        _check_one(method, config)


def _check_one(method: Method, config: QuantizeConfig) -> None:
    around, named = config.around, asked("method", method.name)
    refitted = [name for name in around.transforms if name in CORRECTIONS]
    if method.moves_norms and refitted:
        raise ConfigError(f"{named}: moves the gains that {asked('transforms', around.transforms, refitted[0])} moves; drop one")
    if method.block_steps and not around.block_steps:
        raise ConfigError(f"{named}: learns, which takes steps; give {asked('block_steps', method.block_steps)}")
    if method.divides is not None and around.mends_of_parts:
        raise ConfigError(
            f"{named}: goes with nothing that moves weights after rounding; give {', '.join(around.mends_of_parts)}, or choose "
            "another method"
        )
    if method.learns and around.float_columns:
        raise ConfigError(
            f"{named}: moves weights after rounding, which goes with no {asked('float_columns', around.float_columns)}; "
            "drop one of the two"
        )
    if method.folds and around.float_columns:
        raise ConfigError(
            f"{named}: scales channels, of which none may be kept before; drop it, or "
            f"{asked('float_columns', around.float_columns)}"
        )
    if (method.turns or method.turn_blocks) and around.float_columns:
        raise ConfigError(
            f"{named}: turns inputs, after which no channel is louder than others to be kept; drop it, or "
            f"{asked('float_columns', around.float_columns)}"
        )


def own_grid(method: Method, spec: GridSpec, target: Target) -> GridSpec:
    """With the method's grid of that width where none is named.

    Raises ConfigError for a width without one, and for a target that does not hold what the method makes.
    """
    lack = method.lacks_turns(target)
    if lack is not None:
        raise ConfigError(f"{asked('method', method.name)}: {lack}; choose another method")
    if spec.name is not None or not method.grids:
        return spec
    bits = int(spec.bits or DEFAULT_BITS)  # no fraction: those are of methods that mix widths
    if bits not in method.grids:
        known = ", ".join(f"{width} ({grid})" for width, grid in method.grids.items())
        raise ConfigError(f"{asked('bits', bits)}: a width without its levels; {method.name} has {known}")
    return replace(spec, name=method.grids[bits])


def with_turn(plan: TensorPlan, seed: int) -> TensorPlan:
    """Of a method that turns inputs, and what is told where not all channels are turned together."""
    method, channels = METHODS[plan.method], plan.shape[-1]
    if not (method.turns or method.turn_blocks) or not plan.candidates:
        return plan
    turn = Rotation.of(channels, seed) if len(plan.shape) == 2 and method.turns else None
    if len(plan.shape) > 2:
        told = "its input is not turned: experts are multiplied by one node"
    elif method.turn_blocks:
        return _with_blocks(plan, channels)
    elif turn is None:
        told = f"its input is not turned: no Hadamard matrix is known for runs of its {channels} channels"
    elif turn.size < channels:
        told = f"its {channels} input channels are turned in runs of {turn.size}: no Hadamard matrix is known for more together"
        plan = replace(plan, candidates={axis: within(grid, turn) for axis, grid in plan.candidates.items()})
    else:
        return replace(plan, turn=turn)
    return _noting(replace(plan, turn=turn), told)


def _with_blocks(plan: TensorPlan, channels: int) -> TensorPlan:
    size = block_size(channels)
    if FoundTurn(size).fits(channels):
        return replace(plan, turn_blocks=size)
    return _noting(plan, f"its input is not turned: no power of two from {LEAST} on divides its {channels} channels")


def _noting(plan: TensorPlan, told: str) -> TensorPlan:
    return replace(plan, note=f"{plan.note}; {told}" if plan.note else told)


def within(grid: Grid, turn: Rotation) -> Grid:
    """Of channels turned in runs: with no scale for more than what is turned together, whose mean square is one; as nearly as
    groups allow."""
    most = max(LEAST_GROUP, turn.size & -turn.size)
    return grid.grouped(most) if isinstance(grid, Levels) and grid.group_size > most else grid
