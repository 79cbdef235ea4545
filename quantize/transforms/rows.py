"""A change of basis of channels that some rows of a weight make, where the weight may have others."""

from __future__ import annotations

from quantize.architecture.families import Rows, bias_of
from quantize.block import Block
from quantize.fold import Basis


def made_rows(block: Block, basis: Basis, *places: Rows) -> dict[str, Basis]:
    """``Fold.made`` of what makes the channels in those ``places``: weights and their biases."""
    out = dict[str, Basis]()
    for weight, start, stop in places:
        count = len(block.tensors[weight])
        whole = basis if (start, stop) == (0, count) else _joined(out.get(weight), basis.within(slice(start, stop), count))
        out |= dict.fromkeys((weight, bias_of(weight)), whole)
    return out


def _joined(first: Basis | None, second: Basis) -> Basis:
    """Both, of rows that only one of them changes."""
    return second if first is None else Basis(first.order[second.order], first.factor[second.order] * second.factor)
