"""GRIDS: what each format can store. A new block format is one class and one row here."""

from __future__ import annotations

from quantize.errors import ConfigError
from quantize.grids.codebook import CODEBOOK_GRIDS
from quantize.grids.ggml import GGML_GRIDS
from quantize.grids.ggml_k import K_GRIDS
from quantize.grids.int_affine import IntAffine
from quantize.types import Grid

GRIDS: dict[str, Grid | type[IntAffine]] = {
    "int": IntAffine,
    **{grid.name: grid for grid in (*GGML_GRIDS, *CODEBOOK_GRIDS, *K_GRIDS)},
}


def make_grid(name: str, bits: int, group_size: int, symmetric: bool = False) -> Grid:
    """The grid of that name; ``int`` takes its bits, group size and symmetry, a ggml grid has its own.

    Raises ConfigError for an unknown name and for options that contradict the grid.
    """
    grid = GRIDS.get(name)
    if grid is None:
        raise ConfigError(f"--grid {name}: unknown; choose one of {', '.join(GRIDS)}")
    if isinstance(grid, type):
        return grid(bits=bits, group_size=group_size, symmetric=symmetric)
    if bits != grid.bits:
        raise ConfigError(f"--grid {name} stores {grid.bits} bits, but --bits {bits} was asked for; drop one of the two")
    if group_size != grid.group_size:
        asked = group_size or "whole channels"
        raise ConfigError(f"--grid {name} has groups of {grid.group_size}, not {asked}; drop --group-size")
    if symmetric and not grid.symmetric:
        others = [
            other.name for other in GRIDS.values() if not isinstance(other, type) and other.symmetric and other.bits == bits
        ]
        choose = f"choose {' or '.join(others)}, or drop" if others else "drop"
        raise ConfigError(f"--grid {name} is not symmetric; {choose} --symmetric")
    return grid
