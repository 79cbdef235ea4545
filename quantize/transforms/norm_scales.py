"""Scales of the input channels of q, k, v and of gate, up, taken into the gain of the norm before them."""

from __future__ import annotations

from collections.abc import Iterator

from quantize.architecture.families import FoldSites
from quantize.block import Block
from quantize.fold import Basis, Fold
from quantize.transforms.scales import Factors, channel_factors
from quantize.types import F32


def norm_fold(at: FoldSites, norm: str, factor: F32) -> Fold:
    """Of the channels that ``norm`` makes, each ``factor`` F32[n] as large."""
    basis = Basis.scaled(factor, at.gain_offset)
    return Fold({norm: basis}, dict.fromkeys(at.norms[norm], basis))


def norm_scales(block: Block, at: FoldSites, factors_of: Factors = channel_factors) -> Iterator[list[Fold]]:
    """Candidates for each of the two norms; linears that share their inputs share the scales."""
    for norm, linears in at.norms.items():
        importance = block.stats[linears[0]].importance
        factors = factors_of(importance, [block.tensors[name] for name in linears])
        yield [norm_fold(at, norm, factor) for factor in factors]
