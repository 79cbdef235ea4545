"""The arrays of a tensor's file in a store, as plan.json says that they are, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from quantize.block_turn import FoundTurn
from quantize.grids.codebook import GgmlKCodebook
from quantize.grids.ggml_k import GgmlKOffset
from quantize.grids.int_affine import IntAffine
from quantize.grids.lattice import TOP, GgmlLattice
from quantize.outside import open_regular
from quantize.types import F32, Array, Grid

READS = "reads"  # of a part
TURN = "turn."  # before the names of a turn's arrays
MOST_HEADER = 1 << 16  # bytes of a tensor file's own header: it has a handful of arrays
ELEMENTS: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(np.uint16)}
Layout = tuple[np.dtype[Any], tuple[int, ...]]  # of an array


class Held(NamedTuple):
    """What plan.json says of a tensor's arrays. ``shape``: as stored. ``reads``: of a part, how many of how many channels.
    ``turn``: of a file that holds one, of how many input channels."""

    grid: Grid | None
    dtype: str
    shape: tuple[int, ...]
    reads: tuple[int, int] | None = None
    turn: tuple[FoundTurn, int] | None = None


def load_arrays(path: Path, held: Held) -> dict[str, Array]:
    """Some stored rows of a tensor: each array as the grid has it, and no other; of a part READS, I32[n]; those of a turn behind
    TURN, whose values nobody has looked at.

    Raises OSError and ValueError.
    """
    grid = held.grid
    expected: dict[str, Layout] = {"values": (ELEMENTS[held.dtype], held.shape)} if grid is None else _expected(grid, held.shape)
    beside: dict[str, Layout] = {} if held.reads is None else {READS: (np.dtype(np.int32), held.reads[:1])}
    turn = {} if held.turn is None else _turn_layout(*held.turn)
    beside |= turn
    layouts = {**expected, **beside}.values()
    most = MOST_HEADER + sum(kind.itemsize * int(np.prod(size, dtype=object)) for kind, size in layouts)
    with open_regular(path) as file:
        size = file.seek(0, 2)
    if size > most:
        raise ValueError(f"{size:,} bytes, where plan.json makes {most:,} the most")
    arrays: dict[str, Array] = load_file(path)
    if arrays.keys() != expected.keys() | beside.keys():
        raise ValueError(f"has {sorted(arrays)[:5]}, where {sorted({**expected, **beside})} should be")
    if held.reads is not None:
        _check_reads(arrays[READS], *held.reads)
    for key, layout in turn.items():
        if (arrays[key].dtype, arrays[key].shape) != layout:
            raise ValueError(f"{key} is {arrays[key].dtype}{list(arrays[key].shape)}, not {layout[0]}{list(layout[1])}")
    for key, (kind, size_of) in expected.items():
        found = arrays[key]
        if (found.dtype, found.shape[1:]) != (kind, size_of[1:]) or not 0 < len(found) <= size_of[0]:
            raise ValueError(f"{key} is {found.dtype}{list(found.shape)}, not of the {kind}{list(size_of)} of plan.json")
        if grid is not None:
            _check_values(grid, key, found)
    rows = {len(arrays[key]) for key in expected}
    if len(rows) != 1:
        raise ValueError(f"its arrays have {sorted(rows)} rows, where all have as many")
    return arrays


def _turn_layout(found: FoundTurn, channels: int) -> dict[str, Layout]:
    matrix: Layout = np.dtype(np.float32), (found.size, found.size)
    return {f"{TURN}first": matrix, f"{TURN}second": matrix, f"{TURN}order": (np.dtype(np.int32), (channels,))}


def _check_reads(reads: Array, count: int, inputs: int) -> None:
    """Raises ValueError for what does not say which input channels a part reads, in rising order."""
    if reads.dtype != np.int32 or reads.shape != (count,) or (np.diff(reads) <= 0).any() or reads[0] < 0 or reads[-1] >= inputs:
        raise ValueError(f"{READS} is {reads.dtype}{list(reads.shape)}, not {count} rising numbers below {inputs}")


def _expected(grid: Grid, shape: tuple[int, ...]) -> dict[str, Layout]:
    """By key the type and the shape of codes and params."""
    blocks = (shape[0], -(-shape[1] // grid.block_size))
    return {
        "codes": (np.dtype(np.uint8), shape),
        **{key: (value.dtype, (*blocks, *value.shape[1:])) for key, value in _fitted(grid).items()},
    }


def _fitted(grid: Grid) -> Mapping[str, Array]:
    """The grid's params of one block: it alone knows which they are."""
    block: F32 = np.zeros((1, grid.block_size), np.float32)
    return grid.fit(block)


def _check_values(grid: Grid, key: str, found: Array) -> None:
    """Raises ValueError for what no grid makes: floats that are not finite, whole numbers that do not fit their bits."""
    if found.dtype.kind == "f":
        if not np.isfinite(found).all():
            raise ValueError(f"{key} is not finite everywhere")
        return
    low, high = _range(grid, key)
    if found.min(initial=high) < low or found.max(initial=low) > high:
        raise ValueError(f"{key} has {int(found.min())} to {int(found.max())}, where {low} to {high} fit")


def _range(grid: Grid, key: str) -> tuple[int, int]:
    if key == "codes" or (isinstance(grid, IntAffine) and not grid.symmetric):
        return 0, len(grid.formula.levels) - 1
    if isinstance(grid, IntAffine):
        return 2 ** (grid.bits - 1), 2 ** (grid.bits - 1)
    if isinstance(grid, GgmlKOffset):
        return 0, grid.top
    if isinstance(grid, GgmlLattice):
        return 0, TOP
    if isinstance(grid, GgmlKCodebook):
        return -grid.span, grid.span - 1
    return 0, 255  # MXFP4's exponents
