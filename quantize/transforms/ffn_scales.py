"""Scales of the MLP's hidden channels: rows of up, and inversely columns of down (``silu(gate x) * up x`` is linear in up)."""

from __future__ import annotations

from collections.abc import Iterator

from quantize.transforms.fold import Basis, Fold
from quantize.transforms.layer import DecoderLayer
from quantize.transforms.scales import channel_factors

MADE = ("mlp.up_proj.weight", "mlp.up_proj.bias")
DOWN = "mlp.down_proj.weight"


def ffn_scales(layer: DecoderLayer) -> Iterator[list[Fold]]:
    """Candidates by what down sees: to up, whose groups run along its rows, a row's size is nearly all the same."""
    factors = channel_factors(layer.stats[DOWN].importance, [layer.tensors[DOWN]])
    yield [Fold(dict.fromkeys(MADE, basis), {DOWN: basis}) for basis in map(Basis.scaled, factors)]
