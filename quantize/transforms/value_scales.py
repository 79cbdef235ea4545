"""Scales of the channels of the values: rows of v, and inversely columns of o (attention is linear in the values)."""

from __future__ import annotations

from collections.abc import Iterator

from quantize.transforms.fold import Basis, Fold
from quantize.transforms.heads import OUTPUT, shared, value_fold
from quantize.transforms.layer import DecoderLayer
from quantize.transforms.scales import bounded, channel_factors


def value_scales(layer: DecoderLayer) -> Iterator[list[Fold]]:
    """Candidates by what o sees, one factor for all query heads of a group."""
    factors = channel_factors(layer.stats[OUTPUT].importance, [layer.tensors[OUTPUT]])
    yield [value_fold(Basis.scaled(bounded(shared(factor, layer.config))), layer.config) for factor in factors]
