"""Order of the hidden channels of the MLP: rows of gate and up, columns of down, so that channels alike share blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quantize.architecture.families import FoldSites
from quantize.block import Block
from quantize.fold import Basis, Fold
from quantize.transforms.rows import made_rows
from quantize.transforms.scales import column_norms


def ffn_order(block: Block, at: FoldSites) -> Iterator[list[Fold]]:
    """Falling by the norm of down's columns, by what they contribute, or by the norm of up's rows."""
    gate, up, down = at.mlp
    columns, rows = column_norms([block.tensors[down]]), column_norms([block.tensors[up.weight][up.of].T])
    keys = (columns, columns**2 * block.stats[down].importance, rows)
    bases = (Basis.ordered(np.argsort(-key, kind="stable")) for key in keys)
    yield [Fold(made_rows(block, basis, up, gate), {down: basis}) for basis in bases]
