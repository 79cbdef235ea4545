"""llama.cpp's row order of q and k for architectures with interleaved rotary pairs (llama, mistral).

Hugging Face keeps the two halves of a head apart, llama.cpp puts the partners side by side (``LlamaModel.permute``)::

    one head of 6 rows   hf    a0 a1 a2 b0 b1 b2      (a_i, b_i) are rotated together
                         ggml  a0 b0 a1 b1 a2 b2
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.intp]


def ggml_row_index(rows: int, heads: int) -> Index:
    """intp[rows] such that ``ggml = hf[index]``."""
    return np.arange(rows, dtype=np.intp).reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def hf_row_index(rows: int, heads: int) -> Index:
    """intp[rows] such that ``hf = ggml[index]``: the inverse of ``ggml_row_index``."""
    return np.arange(rows, dtype=np.intp).reshape(heads, -1, 2).swapaxes(1, 2).ravel()
