"""TRANSFORMS: what can be done to a decoder layer, its function unchanged, before its linears are rounded.

A new one is one file and one row here: a function from a layer to a list of candidate folds for each place that it knows.
CORRECTIONS, by the same names of ``--transforms``, come after rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from quantize.transforms.ffn_order import ffn_order
from quantize.transforms.ffn_scales import ffn_scales
from quantize.transforms.fold import Fold
from quantize.transforms.layer import DecoderLayer
from quantize.transforms.norm_gains import norm_gains
from quantize.transforms.norm_scales import norm_scales
from quantize.transforms.value_order import value_order
from quantize.transforms.value_scales import value_scales
from quantize.types import F32

TRANSFORMS: dict[str, Callable[[DecoderLayer], Iterable[list[Fold]]]] = {  # in the order in which they are tried
    "norm-scales": norm_scales,
    "ffn-scales": ffn_scales,
    "value-scales": value_scales,
    "ffn-order": ffn_order,
    "value-order": value_order,
}
CORRECTIONS: dict[str, Callable[[DecoderLayer, Mapping[str, F32]], dict[str, F32]]] = {"norm-gains": norm_gains}
NAMES = (*TRANSFORMS, *CORRECTIONS)


def transform(layer: DecoderLayer, names: Collection[str]) -> list[str]:
    """Apply those of ``names`` that pay, each in the basis that the ones before it left; returns them."""
    applied = []
    for name, propose in TRANSFORMS.items():
        if name not in names or not layer.rounded:
            continue
        folds = [fold for fold in map(layer.best, propose(layer)) if fold is not None]
        for fold in folds:
            layer.apply(fold)
        applied += [name] if folds else []
    return applied


def correct(layer: DecoderLayer, rounded: Mapping[str, F32], names: Collection[str]) -> list[str]:
    """Put new gains into ``layer.tensors`` where they make up for the ``rounded`` weights; returns what was applied."""
    applied = []
    for name, tune in CORRECTIONS.items():
        gains = tune(layer, rounded) if name in names and layer.rounded else {}
        layer.tensors.update(gains)
        applied += [name] if gains else []
    return applied
