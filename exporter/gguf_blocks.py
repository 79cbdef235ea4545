"""Codes and scales to ggml's blocks of 32 weights, byte for byte; nothing is rounded here.

::

    q4_0   d          | qs[16]        18 bytes    d, m: float16
    q4_1   d | m      | qs[16]        20 bytes    qs[i]: code i in the low nibble, code i + 16 in the high one
    q5_0   d | qh     | qs[16]        22 bytes    qh: uint32 whose bit i is the fifth bit of code i
    q5_1   d | m | qh | qs[16]        24 bytes    (so qs holds the low four bits)
    q8_0   d          | qs[32]        34 bytes    qs: int8, code - 128
    iq4_nl d          | qs[16]        18 bytes    as q4_0; a code is the index of a level
"""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType

from quantize.errors import ExportError
from quantize.grids.ggml import BLOCK
from quantize.types import U8, Array, Params, QuantizedTensor

_KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
BLOCK_TYPES = {kind.lower(): GGMLQuantizationType[kind] for kind in _KINDS}


def block_type(grid_name: str, where: str) -> GGMLQuantizationType:
    """ggml's type for a grid. Raises ExportError, with ``where``, for a grid that no GGUF block holds."""
    if grid_name not in BLOCK_TYPES:
        raise ExportError(f"{where}: grid {grid_name} is no ggml block; quantize again with --target llama.cpp or gguf-adadim")
    return BLOCK_TYPES[grid_name]


def pack_blocks(q: QuantizedTensor) -> U8:
    """U8[rows, bytes] of the stored rows (OC for PER_OC, IC for PER_IC). Raises ExportError for a grid without ggml blocks."""
    block_type(q.grid.name, q.name)
    codes = q.codes.reshape(len(q.codes), -1, BLOCK)
    parts = [_halves(q.params, key) for key in ("d", "m") if key in q.params]
    if q.grid.bits == 8:
        parts.append(codes ^ np.uint8(0x80))  # code - 128 as int8 is the code with its top bit flipped
    elif q.grid.bits == 5:
        parts += [np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little"), _nibbles(codes & np.uint8(0x0F))]
    else:
        parts.append(_nibbles(codes))
    return np.concatenate(parts, axis=-1).reshape(len(codes), -1)


def _halves(params: Params, key: str) -> U8:
    """F16[rows, blocks] -> U8[rows, blocks, 2], little-endian."""
    values: Array = np.ascontiguousarray(params[key], "<f2")
    return values.view(np.uint8).reshape(*values.shape, 2)


def _nibbles(codes: U8) -> U8:
    """U8[..., 32] below 16 -> U8[..., 16]."""
    half = BLOCK // 2
    packed: U8 = codes[..., :half] | (codes[..., half:] << np.uint8(4))
    return packed
