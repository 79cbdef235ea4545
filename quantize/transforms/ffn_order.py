"""Order of the hidden channels of the MLP: rows of gate and up, columns of down, so that channels alike share blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quantize.architecture.families import FoldSites, bias_of
from quantize.block import Block
from quantize.fold import Basis, Fold
from quantize.transforms.scales import column_norms


def ffn_order(block: Block, at: FoldSites) -> Iterator[list[Fold]]:
    """Falling by the norm of down's columns, by what they contribute, or by the norm of up's rows."""
    columns, rows = column_norms([block.tensors[at.down]]), column_norms([block.tensors[at.up].T])
    made = (at.up, bias_of(at.up), at.gate, bias_of(at.gate))
    keys = (columns, columns**2 * block.stats[at.down].importance, rows)
    bases = (Basis.ordered(np.argsort(-key, kind="stable")) for key in keys)
    yield [Fold(dict.fromkeys(made, basis), {at.down: basis}) for basis in bases]
