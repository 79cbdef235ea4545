"""ggml's super-blocks of 256 weights in words, decoded with every weight's bits written out.

A word is an index into a book of 4 or 8 magnitudes; the books' numbers are gguf-py's, nothing else is. Whole numbers are
little-endian; "7 signs" stand for eight: with an eighth, an even number of them is set::

    IQ2_XXS  d  8 x u64                            66 bytes   u64: 4 indices of 8 bits, 4 x 7 signs, s in 4 bits
    IQ2_XS   d  32 x u16  s[8]                     74 bytes   u16: index of 9 bits, 7 signs
    IQ2_S    d  qs[32]  signs[32]  qh[8]  s[8]     82 bytes   qh: the two high bits of 4 indices in a byte
    IQ3_XXS  d  qs[64]  8 x u32                    98 bytes   u32: 4 x 7 signs, s in 4 bits
    IQ3_S    d  qs[64]  qh[8]  signs[32]  s[4]    110 bytes   qh: the high bits of 8 indices in a byte

    IQ2_*    w = d * (2 s + 1) / 8 * magnitude      s of each 16 weights, of IQ2_XXS of each 32
    IQ3_XXS  w = d * (2 s + 1) / 4 * magnitude      s of each 32
    IQ3_S    w = d * (2 s + 1) * magnitude          s of each 32
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import gguf.quants
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Array = NDArray[Any]

WORD_BLOCK_BYTES = {"IQ2_XXS": 66, "IQ2_XS": 74, "IQ2_S": 82, "IQ3_XXS": 98, "IQ3_S": 110}
UNITS = {"IQ3_XXS": 0.25, "IQ3_S": 1} | dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S"), 0.125)
SIGN_BIT = {2: 4, 3: 8}  # by the bits of a magnitude's index: a code's third or fourth bit
WEIGHT = np.arange(256)
WORD, SHORT_WORD = np.arange(32), np.arange(64)  # of 8 weights, and of 4
EIGHT = WEIGHT // 8  # which eight weights a weight lies in


def word_codes(kind: str, data: U8) -> tuple[U8, dict[str, Array]]:
    """U8[rows, n * block bytes] -> (codes U8[rows, n * 256], {"d": F16[rows, n], "scales": U8[rows, n, groups]}).

    A code is the index of a magnitude among those that the kind has, and above it a bit for a negative weight.
    """
    blocks = data.reshape(len(data), -1, WORD_BLOCK_BYTES[kind])
    index, signs, scales = _READERS[kind](blocks)
    book, magnitudes = _book(kind)
    length = book.shape[1]
    place = np.searchsorted(magnitudes, book)[index[..., WEIGHT // length], WEIGHT % length]
    codes = place + SIGN_BIT[int(kind[2])] * signs
    d = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0]
    return codes.astype(np.uint8).reshape(len(data), -1), {"d": d, "scales": scales.astype(np.uint8)}


def decode_words(kind: str, data: U8) -> F32:
    """U8[rows, bytes] -> F32[rows, cols]; no product is rounded."""
    codes, params = word_codes(kind, data)
    _, magnitudes = _book(kind)
    sign_bit = SIGN_BIT[int(kind[2])]
    d, s = params["d"].astype(np.float32)[..., None], params["scales"].astype(np.float32)
    scale = d * (2 * s + 1) * np.float32(UNITS[kind])
    values = np.where(codes & sign_bit, -1, 1).astype(np.float32) * magnitudes[codes & (sign_bit - 1)]
    weights: F32 = (scale[..., None] * values.reshape(*scale.shape, -1)).reshape(codes.shape)
    return weights


@cache
def _book(kind: str) -> tuple[F32, F32]:
    """Magnitudes F32[words, length], and those that there are, in rising order."""
    table = getattr(gguf.quants, kind)
    table.init_grid()
    return table.grid.reshape(table.grid_shape), np.array(table.grid_map, np.float32)


def _numbers(data: U8, dtype: str) -> Array:
    """U8[..., n * size] -> U64[..., n]."""
    return np.ascontiguousarray(data).view(dtype).astype(np.uint64)


def _bits(numbers: Array, shift: Array, count: int) -> NDArray[np.int64]:
    """``count`` bits of each number from bit ``shift`` on."""
    found: NDArray[np.int64] = (numbers >> shift.astype(np.uint64) & np.uint64(2**count - 1)).astype(np.int64)
    return found


def _eight(seven: Array) -> NDArray[np.int64]:
    """7 signs of each eight weights, [..., 32] -> the sign of each weight, [..., 256]."""
    signs = _bits(seven.astype(np.uint64)[..., EIGHT], WEIGHT % 8, 1)
    signs[..., 7::8] = signs.reshape(*signs.shape[:-1], 32, 8)[..., :7].sum(-1) % 2
    return signs


def _nibbles(data: U8) -> NDArray[np.int64]:
    """U8[..., n] -> [..., 2 n], the low one first."""
    groups = np.arange(2 * data.shape[-1])
    return _bits(data[..., groups // 2].astype(np.uint64), 4 * (groups % 2), 4)


Read = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # index of each word, sign of each weight, s of each group


def _iq2_xxs(b: U8) -> Read:
    pairs = _numbers(b[..., 2:66], "<u8")
    index = _bits(pairs[..., WORD // 4], 8 * (WORD % 4), 8)
    signs = _bits(pairs[..., WORD // 4], 32 + 7 * (WORD % 4), 7)
    return index, _eight(signs), _bits(pairs, np.array(60), 4)


def _iq2_xs(b: U8) -> Read:
    words = _numbers(b[..., 2:66], "<u2")
    return _bits(words, np.array(0), 9), _eight(_bits(words, np.array(9), 7)), _nibbles(b[..., 66:74])


def _iq2_s(b: U8) -> Read:
    high = _bits(_numbers(b[..., 66:74], "u1")[..., WORD // 4], 2 * (WORD % 4), 2)
    signs = _bits(_numbers(b[..., 34:66], "u1")[..., EIGHT], WEIGHT % 8, 1)
    return b[..., 2:34] + 256 * high, signs, _nibbles(b[..., 74:82])


def _iq3_xxs(b: U8) -> Read:
    signs_and_scale = _numbers(b[..., 66:98], "<u4")
    signs = _bits(signs_and_scale[..., WORD // 4], 7 * (WORD % 4), 7)
    return b[..., 2:66].astype(np.int64), _eight(signs), _bits(signs_and_scale, np.array(28), 4)


def _iq3_s(b: U8) -> Read:
    high = _bits(_numbers(b[..., 66:74], "u1")[..., SHORT_WORD // 8], SHORT_WORD % 8, 1)
    signs = _bits(_numbers(b[..., 74:106], "u1")[..., EIGHT], WEIGHT % 8, 1)
    return b[..., 2:66] + 256 * high, signs, _nibbles(b[..., 106:110])


_READERS: dict[str, Callable[[U8], Read]] = {
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
}
