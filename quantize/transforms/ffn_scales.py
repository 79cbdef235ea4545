"""Scales of the MLP's hidden channels: rows of up, and inversely columns of down (``silu(gate x) * up x`` is linear in up)."""

from __future__ import annotations

from collections.abc import Iterator

from quantize.architecture.families import FoldSites, bias_of
from quantize.block import Block
from quantize.fold import Basis, Fold
from quantize.transforms.scales import channel_factors


def ffn_scales(block: Block, at: FoldSites) -> Iterator[list[Fold]]:
    """Candidates by what down sees: to up, whose groups run along its rows, a row's size is nearly all the same."""
    factors = channel_factors(block.stats[at.down].importance, [block.tensors[at.down]])
    yield [Fold(dict.fromkeys((at.up, bias_of(at.up)), basis), {at.down: basis}) for basis in map(Basis.scaled, factors)]
