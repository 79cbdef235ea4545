"""llama.cpp's row order of q and k for architectures with interleaved rotary pairs (llama, mistral).

Hugging Face keeps the two halves of a head apart, llama.cpp puts the partners side by side (``LlamaModel.permute``)::

    one head of 6 rows   hf    a0 a1 a2 b0 b1 b2      (a_i, b_i) are rotated together
                         ggml  a0 b0 a1 b1 a2 b2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantize.architecture.families import rotary_heads
from quantize.model_config import ModelSizes
from quantize.types import F32, RowOrder

Index = NDArray[np.intp]


def ggml_row_index(rows: int, heads: int) -> Index:
    """intp[rows] such that ``ggml = hf[index]``."""
    return np.arange(rows, dtype=np.intp).reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def hf_row_index(rows: int, heads: int) -> Index:
    """intp[rows] such that ``hf = ggml[index]``: the inverse of ``ggml_row_index``."""
    return np.arange(rows, dtype=np.intp).reshape(heads, -1, 2).swapaxes(1, 2).ravel()


@dataclass(frozen=True)
class RowOrders:
    """Between the source's rows and those in which ``target`` wants its weights: they differ for q and k, weights and biases."""

    model: ModelSizes
    target: RowOrder

    def to_target(self, name: str, values: F32) -> F32:
        """F32[OC, ...] in the target's order."""
        return self._taken(name, values, ggml_row_index)

    def to_source(self, name: str, values: F32) -> F32:
        """F32[OC, ...] in Hugging Face's order."""
        return self._taken(name, values, hf_row_index)

    def _taken(self, name: str, values: F32, row_index: Callable[[int, int], Index]) -> F32:
        heads = rotary_heads(self.model, name)
        if heads is None or self.target is RowOrder.HF:
            return values
        return values[row_index(len(values), heads)]
