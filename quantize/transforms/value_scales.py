"""Scales of the channels of the values: rows of v, and inversely columns of o (attention is linear in the values)."""

from __future__ import annotations

from collections.abc import Iterator

from quantize.architecture.families import FoldSites
from quantize.block import Block
from quantize.fold import Basis, Fold
from quantize.transforms.heads import shared, value_fold
from quantize.transforms.scales import Factors, bounded, channel_factors


def value_scales(block: Block, at: FoldSites, factors_of: Factors = channel_factors) -> Iterator[list[Fold]]:
    """Candidates by what o sees, one factor for all query heads of a group."""
    values = at.values
    if values is None:
        return
    factors = factors_of(block.stats[values.output].importance, [block.tensors[values.output]])
    yield [value_fold(block, Basis.scaled(bounded(shared(factor, values))), values) for factor in factors]
