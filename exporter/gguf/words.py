"""Codes to ggml's blocks of words; nothing is rounded here.

Super-blocks of 256 weights; a word is 4 (iq3) or 8 (iq2) weights, an index into the grid's book, and signs are a bit for each
weight, 1 for a negative one. "7 signs" of eight weights leave out the last, as an even number of them is negative; all whole
numbers are little-endian, and fields of one begin at its lowest bit::

    iq2_xxs d | 8 x (4 indices of 8 bits | 4 x 7 signs, s in 4 bits)      66 bytes
    iq2_xs  d | 32 x (index in 9 bits, 7 signs) | s[8]                    74 bytes    s: two nibbles in a byte
    iq2_s   d | qs[32] | signs[32] | qh[8] | s[8]                         82 bytes    qs: low 8 bits of an index, qh: the others
    iq3_xxs d | qs[64] | 8 x (4 x 7 signs, s in 4 bits)                   98 bytes
    iq3_s   d | qs[64] | qh[8] | signs[32] | s[4]                        110 bytes
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from quantize.errors import ExportError
from quantize.grids.lattice import GgmlLattice
from quantize.types import U8, Array, QuantizedTensor

U32 = NDArray[np.uint32]


def word_parts(q: QuantizedTensor, grid: GgmlLattice) -> list[U8]:
    """Parts of each block, U8[rows, blocks, bytes]. Raises ExportError for codes that are no words."""
    codes = q.codes.reshape(len(q.codes), -1, grid.block_size)
    negative = (codes & grid.words.minus != 0).reshape(*codes.shape[:-1], -1, 8)
    if grid.even and (np.count_nonzero(negative, axis=-1) % 2).any():
        raise ExportError(
            f"{q.name}: an odd number of eight weights is negative, which grid {grid.name} cannot say; quantize again"
        )
    index = _indices(q.name, grid, codes)
    signs = np.packbits(negative, axis=-1, bitorder="little")[..., 0]
    d, scales = _bytes(q.params["d"], "<f2"), q.params["scales"]
    nibbles = scales[..., ::2] | scales[..., 1::2] << np.uint8(4)
    low = index.astype(np.uint8)
    match grid.name:
        case "iq2_xxs":
            pairs = np.stack([_fields(index, 8, 4), _fields(signs & 127, 7, 4) | _last(scales)], axis=-1)
            return [d, _bytes(pairs.reshape(*pairs.shape[:-2], -1), "<u4")]
        case "iq2_xs":
            return [d, _bytes(index | (signs & np.uint32(127)) << np.uint32(9), "<u2"), nibbles]
        case "iq2_s":
            return [d, low, signs, _fields(index >> 8, 2, 4).astype(np.uint8), nibbles]
        case "iq3_xxs":
            return [d, low, _bytes(_fields(signs & 127, 7, 4) | _last(scales), "<u4")]
        case _:
            return [d, low, _fields(index >> 8, 1, 8).astype(np.uint8), signs, nibbles]


def _fields(values: Array, bits: int, count: int) -> U32:
    """Whole numbers [..., n] below 2**bits -> U32[..., n / count], the first of ``count`` in the lowest bits."""
    split = values.astype(np.uint32).reshape(*values.shape[:-1], -1, count)
    joined: U32 = np.bitwise_or.reduce(split << (bits * np.arange(count)).astype(np.uint32), axis=-1)
    return joined


def _last(scales: U8) -> U32:
    """In the four highest bits."""
    return scales.astype(np.uint32) << np.uint32(28)


def _bytes(values: Array, dtype: str) -> U8:
    """[rows, blocks, ...] -> U8[rows, blocks, bytes]."""
    stored = np.ascontiguousarray(values, dtype)
    return stored.view(np.uint8).reshape(*stored.shape[:2], -1)


def _indices(name: str, grid: GgmlLattice, codes: U8) -> U32:
    """Of each word, U32[rows, blocks, words]. Raises ExportError for one that is not in the book."""
    magnitudes = codes & (grid.words.minus - np.uint8(1))
    index = _places(grid)[_fields(magnitudes, _width(grid), len(grid.words.book))]
    if (index < 0).any():
        raise ExportError(f"{name}: some codes are no word of grid {grid.name}; quantize again")
    return index.astype(np.uint32)


@cache
def _places(grid: GgmlLattice) -> NDArray[np.int32]:
    """Where in the book the word is whose magnitudes' codes, one after the other, are this number; -1 for none."""
    length, n_words = grid.words.codes.shape
    places = np.full(1 << _width(grid) * length, -1, np.int32)
    places[_fields(grid.words.codes.T, _width(grid), length)[:, 0]] = np.arange(n_words)
    return places


def _width(grid: GgmlLattice) -> int:
    """Bits of a magnitude's code."""
    return int(grid.words.minus).bit_length() - 1
