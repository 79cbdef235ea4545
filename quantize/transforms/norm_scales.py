"""Scales of the input channels of q, k, v and of gate, up, taken into the gain of the norm before them."""

from __future__ import annotations

from collections.abc import Iterator

from quantize.transforms.fold import Basis, Fold
from quantize.transforms.layer import READERS, DecoderLayer
from quantize.transforms.scales import channel_factors


def norm_scales(layer: DecoderLayer) -> Iterator[list[Fold]]:
    """Candidates for each of the two norms; linears that share their inputs share the scales."""
    for norm, linears in READERS.items():
        importance = layer.stats[linears[0]].importance
        factors = channel_factors(importance, [layer.tensors[name] for name in linears])
        yield [Fold({norm: basis}, dict.fromkeys(linears, basis)) for basis in map(Basis.scaled, factors)]
