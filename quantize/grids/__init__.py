"""GRIDS: what each format can store. A new block format is one class and one row here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from quantize.errors import ConfigError, asked, shown
from quantize.grids.codebook import CODEBOOK_GRIDS
from quantize.grids.ggml import GGML_GRIDS
from quantize.grids.ggml_k import K_GRIDS
from quantize.grids.int_affine import SCALE_DTYPES, IntAffine
from quantize.grids.lattice import LATTICE_GRIDS
from quantize.grids.levels import LEVEL_GRIDS, OWN, Levels, from_hex
from quantize.outside import Size
from quantize.types import Grid

_GGML: tuple[Grid, ...] = (*GGML_GRIDS, *CODEBOOK_GRIDS, *K_GRIDS, *LATTICE_GRIDS)
BLOCK_GRIDS = {grid.name: grid for grid in _GGML}  # ggml's, which are as they are
GRIDS: dict[str, Grid | type[IntAffine]] = {"int": IntAffine, **BLOCK_GRIDS, **{grid.name: grid for grid in LEVEL_GRIDS}}


def make_grid(name: str, bits: int, group_size: int, symmetric: bool = False, scale_dtype: str = SCALE_DTYPES[0]) -> Grid:
    """The grid of that name; ``int`` takes its bits, group size, symmetry and type of scales, levels a group size, and a ggml
    grid has its own.

    Raises ConfigError for an unknown name and for options that contradict the grid.
    """
    grid = GRIDS.get(name)
    if grid is None:
        raise ConfigError(f"{asked('grid', name)}: unknown; choose one of {', '.join(GRIDS)}")
    if isinstance(grid, type):
        return grid(bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype)
    if bits != grid.bits:
        raise ConfigError(
            f"{asked('grid', name)} stores {grid.bits} bits, but {asked('bits', bits)} was asked for; drop one of the two"
        )
    if isinstance(grid, Levels):
        grid = grid.grouped(group_size)
    if group_size != grid.group_size:
        groups = group_size or "whole channels"
        raise ConfigError(f"{asked('grid', name)} has groups of {grid.group_size}, not {groups}; drop {asked('group_size')}")
    if scale_dtype != SCALE_DTYPES[0]:
        raise ConfigError(f"{asked('grid', name)} has scales of its own; drop {asked('scale_dtype', scale_dtype)}")
    if symmetric and not grid.symmetric:
        others = [
            other.name for other in GRIDS.values() if not isinstance(other, type) and other.symmetric and other.bits == bits
        ]
        choose = f"choose {' or '.join(others)}, or drop" if others else "drop"
        raise ConfigError(f"{asked('grid', name)} is not symmetric; {choose} {asked('symmetric')}")
    return grid


def grid_to_json(grid: Grid) -> dict[str, Any]:
    """What stores and files say of a grid."""
    out = {"grid": grid.name, "bits": grid.bits, "group_size": grid.group_size, "symmetric": grid.symmetric}
    if grid.name == OWN and isinstance(grid, Levels):
        return out | {"levels": grid.to_hex()}
    return out | ({"scale_dtype": grid.scale_dtype} if isinstance(grid, IntAffine) else {})


class GridJson(msgspec.Struct, kw_only=True):
    """A grid as ``grid_to_json`` writes it; an int grid that names no type of scales is from when all were float32. ``levels``: a
    tensor's own, in digits."""

    grid: str
    bits: Size
    group_size: Size
    symmetric: bool
    scale_dtype: str | None = None
    levels: str | None = None

    def __post_init__(self) -> None:
        self.make()

    def make(self) -> Grid:
        """The grid. Raises ValueError for one that is not known here."""
        known = GRIDS.get(self.grid)
        if self.levels is not None and self.grid != OWN:
            raise ValueError(f"grid {shown(self.grid)} has no levels of a tensor's own")
        try:
            if isinstance(known, type):
                return known(self.bits, self.group_size, self.symmetric, self.scale_dtype or "float32")
            if isinstance(known, Levels):
                known = known.grouped(self.group_size)
            elif self.grid == OWN and self.levels is not None:
                known = from_hex(self.levels, self.bits, self.group_size)
        except ConfigError as error:
            raise ValueError(f"no grid: {error}") from error
        if known is None or (self.bits, self.group_size, self.symmetric, self.scale_dtype) != _own(known):
            told = f"{shown(self.grid)} of {self.bits} bits in groups of {self.group_size}"
            raise ValueError(f"{told}, symmetric: {self.symmetric}, is no grid that is known here")
        return known


def _own(grid: Grid) -> tuple[int, int, bool, None]:
    return grid.bits, grid.group_size, grid.symmetric, None


def grid_from_json(raw: Mapping[str, Any]) -> Grid:
    """The inverse of ``grid_to_json``, of what was read already."""
    return GridJson(**{key: raw[key] for key in GridJson.__struct_fields__ if key in raw}).make()
