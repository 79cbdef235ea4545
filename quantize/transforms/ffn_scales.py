"""Scales of the MLP's hidden channels: rows of up, and inversely columns of down (``silu(gate x) * up x`` is linear in up)."""

from __future__ import annotations

from collections.abc import Iterator

from quantize.architecture.families import FoldSites
from quantize.block import Block
from quantize.fold import Basis, Fold
from quantize.transforms.rows import made_rows
from quantize.transforms.scales import channel_factors


def ffn_scales(block: Block, at: FoldSites) -> Iterator[list[Fold]]:
    """Candidates by what down sees: to up, whose groups run along its rows, a row's size is nearly all the same."""
    _, up, down = at.mlp
    factors = channel_factors(block.stats[down].importance, [block.tensors[down]])
    yield [Fold(made_rows(block, basis, up), {down: basis}) for basis in map(Basis.scaled, factors)]
