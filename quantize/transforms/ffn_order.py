"""Order of the hidden channels of the MLP: rows of gate and up, columns of down, so that channels alike share blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quantize.transforms.fold import Basis, Fold
from quantize.transforms.layer import DecoderLayer
from quantize.transforms.scales import column_norms

DOWN = "mlp.down_proj.weight"
UP = "mlp.up_proj.weight"
MADE = (UP, "mlp.up_proj.bias", "mlp.gate_proj.weight", "mlp.gate_proj.bias")


def ffn_order(layer: DecoderLayer) -> Iterator[list[Fold]]:
    """Falling by the norm of down's columns, by what they contribute, or by the norm of up's rows."""
    columns, rows = column_norms([layer.tensors[DOWN]]), column_norms([layer.tensors[UP].T])
    keys = (columns, columns**2 * layer.stats[DOWN].importance, rows)
    bases = (Basis.ordered(np.argsort(-key, kind="stable")) for key in keys)
    yield [Fold(dict.fromkeys(MADE, basis), {DOWN: basis}) for basis in bases]
