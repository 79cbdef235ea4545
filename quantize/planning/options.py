"""What a tensor may become where a file's size decides: grids on axes, levels of turned weights, products of integers.

Levels are made for weights of a normal distribution, which turned ones look like (arXiv 2411.17525): a scale a row is enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from quantize.activations import ACTIVATIONS, Activation
from quantize.blocks import one_group
from quantize.checkpoint import Checkpoint
from quantize.config import GROUP_SIZES, TABLE_BITS
from quantize.grids import BLOCK_GRIDS, make_grid
from quantize.grids.int_affine import BITS, one_scale
from quantize.grids.levels import LEAST_GROUP, LEVEL_GRIDS
from quantize.model_config import EMBEDDING, HEAD, block_index
from quantize.planning.of_method import within
from quantize.store.record import TensorRecord
from quantize.turn import Rotation
from quantize.types import FINE_BITS, Axis, Grid, Target, TensorSpec

TABLES = (EMBEDDING, HEAD)
INT_GROUPS = (32, 64, 128)
FLOAT_COLUMNS = (1, 4, 16)


def options_of(spec: TensorSpec, target: Target, seed: int) -> list[TensorRecord]:
    """Whatever ``target`` holds for a weight (OC, IC); embedding and head only per output channel (a token's row). ``seed``: of
    turns."""
    shape = (spec.shape[0], spec.shape[1])
    grids = list(BLOCK_GRIDS.values())
    for bits, group_size in product(TABLE_BITS if spec.name in TABLES else BITS, INT_GROUPS):
        grids.append(make_grid("int", bits, group_size, symmetric=bits == FINE_BITS))  # zero points are worth it at few bits
    fitting = [
        (grid, axis)
        for grid, axis in product(grids, (Axis.PER_OC,) if spec.name in TABLES else Axis)
        if _fits(grid, axis, shape, target)
    ]

    def like(grid: Grid, axis: Axis) -> tuple[Axis, int, bool, int]:
        return axis, grid.group_size, grid.symmetric, target.stored_bytes(grid, axis, shape)

    most: dict[tuple[Axis, int, bool, int], int] = {}  # bits for as many bytes: 3 that ride in 4 are no option
    for grid, axis in fitting:
        most[like(grid, axis)] = max(most.get(like(grid, axis), 0), grid.bits)
    plain = [TensorRecord(spec.name, shape, grid, axis=axis) for grid, axis in fitting if grid.bits == most[like(grid, axis)]]
    plain = [one for one in plain if not _static(one, target)]
    return plain + column_options(plain, target) + turned_options(spec, target, seed) + static_options(spec, target)


def column_options(plain: Iterable[TensorRecord], target: Target) -> list[TensorRecord]:
    """Of linears of few bits per output channel, some input channels in float16 beside the codes of the others; per input channel
    outliers are by themselves as it is."""
    if target.lacks_parts is not None or target.activations:
        return []
    few = [one for one in plain if one.axis is Axis.PER_OC and one.name not in TABLES and one.grid and one.grid.bits < FINE_BITS]
    return [replace(one, float_columns=count) for one, count in product(few, FLOAT_COLUMNS) if 2 * count <= one.shape[1]]


def turned_options(spec: TensorSpec, target: Target, seed: int) -> list[TensorRecord]:
    """Of a linear (OC, IC) whose input ``target`` turns: the whole row under one scale, or what is turned together."""
    shape = (spec.shape[0], spec.shape[1])
    turn = None if spec.name in TABLES or target.lacks_turns is not None else Rotation.of(shape[1], seed)
    if turn is None:
        return []
    grids: list[Grid] = [grid.grouped(one_group(shape[1], LEAST_GROUP)) for grid in LEVEL_GRIDS]
    if turn.size < shape[1]:
        grids = [within(grid, turn) for grid in grids]
    return [TensorRecord(spec.name, shape, grid, turn=turn) for grid in grids if _fits(grid, Axis.PER_OC, shape, target)]


def static_options(spec: TensorSpec, target: Target) -> list[TensorRecord]:
    """Of a linear (OC, IC) whose input ``target`` rounds by a scale that its file has: bytes under one scale a row. The scale of
    the input is none before data."""
    shape = (spec.shape[0], spec.shape[1])
    grid = make_grid("int", FINE_BITS, one_group(shape[1], GROUP_SIZES[0]), symmetric=True)
    made = [
        TensorRecord(spec.name, shape, grid, activation=Activation(word, scale=1.0))
        for word in target.activations
        if ACTIVATIONS[word].static
    ]
    return [one for one in made if _static(one, target)]


def _static(option: TensorRecord, target: Target) -> bool:
    """Whether its input is rounded by a scale that the file has."""
    static = any(ACTIVATIONS[word].static for word in target.activations) and block_index(option.name) is not None
    return static and option.grid is not None and one_scale(option.grid, option.shape[1])


def _fits(grid: Grid, axis: Axis, shape: tuple[int, int], target: Target) -> bool:
    return target.lacks(grid, axis) is None and target.refuses(grid, axis, shape) is None


def quick_enough(option: TensorRecord, target: Target, max_slowdown: float) -> bool:
    """Whether axis, turn and columns in float16 keep this tensor, and so its layer, within so many times the time of PER_OC."""
    assert option.grid is not None
    shape = (option.shape[0], option.shape[1])
    plain = target.decode_cost(option.grid, Axis.PER_OC, shape)
    beside = target.columns_cost(option.float_columns, shape)
    return target.decode_cost(option.grid, option.axis, shape, option.turn) + beside <= max_slowdown * plain


def option_problem(record: TensorRecord, source: Checkpoint, target: Target, known: Iterable[TensorRecord]) -> str | None:
    """Why this, read from a file, is nothing that the tensor could become beside what is ``known`` of it, or None."""
    spec, grid, turn = source.specs.get(record.name), record.grid, record.turn
    if spec is None or record.shape != spec.shape:
        return f"{record.name} of shape {record.shape} is no tensor of {source.path}"
    if grid is None or record.axis not in record.loss:
        return f"{record.name} has no grid, or no loss for its axis"
    shape = (record.shape[0], record.shape[1])
    lack = target.lacks(grid, record.axis) or target.refuses(grid, record.axis, shape)
    if turn is not None:
        lack = lack or target.lacks_turns or _turn_problem(record, turn)
    lack = lack or _activation_problem(record, target) or _columns_problem(record, target)
    if lack is not None:
        return f"{record.name}: {lack}"
    own = (grid, record.axis, turn, record.float_columns)
    twice = any((o.grid, o.axis, o.turn, o.float_columns) == own for o in known)
    return f"{record.name} has an option twice" if twice else None


def _activation_problem(record: TensorRecord, target: Target) -> str | None:
    held = record.activation
    if not _static(record, target):
        return None if held is None else f"target {target.name} rounds the input of no such weight to {held.name}"
    known = [word for word in target.activations if ACTIVATIONS[word].static]
    return None if held is not None and held.name in known else f"it does not say its input's {' or '.join(known)}"


def _columns_problem(record: TensorRecord, target: Target) -> str | None:
    if not record.float_columns:
        return None
    if record.name in TABLES or record.turn is not None or record.activation is not None or target.activations:
        return "float16 keeps input channels of linears alone, whose input is neither turned nor rounded"
    if record.float_columns >= record.shape[1]:
        return f"float16 keeps {record.float_columns} of {record.shape[1]} input channels, which leaves none"
    return target.lacks_parts


def _turn_problem(record: TensorRecord, turn: Rotation) -> str | None:
    if record.name in TABLES or record.axis is not Axis.PER_OC:
        return "an input is turned of linears alone, per output channel"
    channels = record.shape[1]
    own = Rotation.of(channels, turn.seed)
    if turn == own:
        return None
    return f"{channels} input channels are turned in runs of {own.size if own else 'no size'}, not of {turn.size}"
