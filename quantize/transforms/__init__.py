"""TRANSFORMS: what can be done to a decoder block, its function unchanged, before its linears are rounded.

A new one is one file and one row here: a function from a block to a list of candidate folds for each place that it knows.
CORRECTIONS, by the same names of ``--transforms``, come after rounding: from a block to new gains by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from quantize.architecture.families import FoldSites
from quantize.block import Block
from quantize.fold import Fold
from quantize.transforms.ffn_order import ffn_order
from quantize.transforms.ffn_scales import ffn_scales
from quantize.transforms.norm_gains import norm_gains
from quantize.transforms.norm_scales import norm_scales
from quantize.transforms.value_order import value_order
from quantize.transforms.value_scales import value_scales
from quantize.types import F32

Propose = Callable[[Block, FoldSites], Iterable[list[Fold]]]
Correct = Callable[[Block, FoldSites], dict[str, F32]]
TRANSFORMS: dict[str, Propose] = {  # in the order in which they are tried
    "norm-scales": norm_scales,
    "ffn-scales": ffn_scales,
    "value-scales": value_scales,
    "ffn-order": ffn_order,
    "value-order": value_order,
}
CORRECTIONS: dict[str, Correct] = {"norm-gains": norm_gains}
NAMES = (*TRANSFORMS, *CORRECTIONS)
