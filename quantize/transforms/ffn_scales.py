"""Scales of the MLP's hidden channels: rows of up, and inversely columns of down (``silu(gate x) * up x`` is linear in up)."""

from __future__ import annotations

from collections.abc import Iterator

from quantize.architecture.families import FoldSites
from quantize.block import Block
from quantize.fold import Basis, Fold
from quantize.transforms.rows import made_rows
from quantize.transforms.scales import Factors, channel_factors


def ffn_fold(block: Block, basis: Basis, at: FoldSites) -> Fold:
    """Of a basis of the hidden channels in which gate stays as it is."""
    return Fold(made_rows(block, basis, at.mlp.up), {at.mlp.down: basis})


def ffn_scales(block: Block, at: FoldSites, factors_of: Factors = channel_factors) -> Iterator[list[Fold]]:
    """Candidates by what down sees: to up, whose groups run along its rows, a row's size is nearly all the same."""
    down = at.mlp.down
    factors = factors_of(block.stats[down].importance, [block.tensors[down]])
    yield [ffn_fold(block, basis, at) for basis in map(Basis.scaled, factors)]
