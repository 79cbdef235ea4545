"""Codes and scales to ggml's blocks, byte for byte; nothing is rounded here.

Blocks of 32 weights::

    q4_0   d          | qs[16]        18 bytes    d, m: float16
    q4_1   d | m      | qs[16]        20 bytes    qs[i]: code i in the low nibble, code i + 16 in the high one
    q5_0   d | qh     | qs[16]        22 bytes    qh: uint32 whose bit i is the fifth bit of code i
    q5_1   d | m | qh | qs[16]        24 bytes    (so qs holds the low four bits)
    q8_0   d          | qs[32]        34 bytes    qs: int8, code - 128
    iq4_nl d          | qs[16]        18 bytes    as q4_0; a code is the index of a level
    mxfp4  e          | qs[16]        17 bytes    e: uint8, the exponent

Super-blocks of 256 weights; scales and mins are whole numbers, and "run r" says that a byte holds codes i, i + r, ...::

    q2_k   scales[16] | qs[64] | d | dmin                84 bytes    scale in the low nibble, min in the high one; qs: run 32
    q3_k   hmask[32] | qs[64] | scales[12] | d          110 bytes    hmask: third bits, run 32; qs: run 32; scales: see _six_bits
    q4_k   d | dmin | scales[12] | qs[128]              144 bytes    qs: run 32; scales and mins: see _pairs
    q5_k   d | dmin | scales[12] | qh[32] | qs[128]     176 bytes    qh: fifth bits, run 32
    q6_k   ql[128] | qh[64] | scales[16] | d            210 bytes    ql: low nibbles, run 64; qh: two high bits, run 32
    iq4_xs d | scales_h[2] | scales_l[4] | qs[128]      136 bytes    scale + 32: nibble and two high bits, run 1; qs: run 16
    tq2_0  qs[64] | d                                    66 bytes    qs: run 32

Blocks of words: see ``words``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType

from exporter.gguf.words import word_parts
from quantize.errors import ExportError, asked
from quantize.grids.lattice import LATTICE_GRIDS, GgmlLattice
from quantize.types import U8, Array, Params, QuantizedTensor

Layout = Callable[[U8, Params], list[U8]]  # codes U8[rows, blocks, block_size] -> parts U8[rows, blocks, bytes]

SIGN = np.uint8(0x80)  # code - 128 as int8 is the code with its top bit flipped
BIAS = 32  # of six-bit scales


def block_type(grid_name: str, where: str) -> GGMLQuantizationType:
    """ggml's type for a grid. Raises ExportError, with ``where``, for a grid that no GGUF block holds."""
    if grid_name not in BLOCK_TYPES:
        raise ExportError(
            f"{where}: grid {grid_name} is no ggml block; quantize again with {asked('target', 'llama.cpp')} or gguf-adadim"
        )
    return BLOCK_TYPES[grid_name]


def pack_blocks(q: QuantizedTensor) -> U8:
    """U8[rows, bytes] of the stored rows (OC for PER_OC, IC for PER_IC).

    Raises ExportError for a grid without ggml blocks, and for codes that its blocks cannot say.
    """
    block_type(q.grid.name, q.name)
    if isinstance(q.grid, GgmlLattice):
        parts = word_parts(q, q.grid)
    else:
        parts = _LAYOUTS[q.grid.name](q.codes.reshape(len(q.codes), -1, q.grid.block_size), q.params)
    return np.concatenate(parts, axis=-1).reshape(len(q.codes), -1)


def _runs(codes: U8, bits: int, run: int) -> U8:
    """U8[..., n] below 2**bits -> U8[..., n * bits / 8]: codes i, i + run, i + 2 run, ... fill byte i from its lowest bit."""
    split = codes.reshape(*codes.shape[:-1], -1, 8 // bits, run)
    shifted = split << np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    packed: U8 = np.bitwise_or.reduce(shifted, axis=-2)
    return packed.reshape(*codes.shape[:-1], -1)


def _low(codes: U8, bits: int) -> U8:
    return codes & np.uint8((1 << bits) - 1)


def _high(codes: U8, bits: int) -> U8:
    return codes >> np.uint8(bits)


def _halves(params: Params, *keys: str) -> list[U8]:
    """F16[rows, blocks] -> U8[rows, blocks, 2], little-endian, of each key."""
    values: list[Array] = [np.ascontiguousarray(params[key], "<f2") for key in keys]
    return [value.view(np.uint8).reshape(*value.shape, 2) for value in values]


def _biased(params: Params) -> U8:
    """I8[..., groups] from -32 to 31 -> U8[..., groups] from 0."""
    biased: U8 = (params["scales"] + np.int8(BIAS)).view(np.uint8)
    return biased


def _six_bits(params: Params) -> U8:
    """Sixteen scales in 12 bytes: eight of low nibbles (run 8), four of the two high bits (run 4)."""
    biased = _biased(params)
    return np.concatenate([_runs(_low(biased, 4), 4, 8), _runs(_high(biased, 4), 2, 4)], axis=-1)


def _pairs(params: Params) -> U8:
    """Eight scales s and mins m of six bits in 12 bytes; the last four of each are spread.

    ::

        byte      bits 0 to 3        4 to 5         6 to 7
        j         s[j]                              s[4 + j] >> 4       j = 0..3
        4 + j     m[j]                              m[4 + j] >> 4
        8 + j     s[4 + j] & 15      m[4 + j] & 15 in bits 4 to 7
    """
    scales, mins = params["scales"], params["mins"]
    first = [value[..., :4] | _high(value[..., 4:], 4) << np.uint8(6) for value in (scales, mins)]
    return np.concatenate([*first, _low(scales[..., 4:], 4) | mins[..., 4:] << np.uint8(4)], axis=-1)


def _fifth_bits(codes: U8) -> list[U8]:
    return [_runs(_high(codes, 4), 1, 1), _runs(_low(codes, 4), 4, 16)]


def _q2_k(codes: U8, params: Params) -> list[U8]:
    both = params["scales"] | params["mins"] << np.uint8(4)
    return [both, _runs(codes, 2, 32), *_halves(params, "d", "dmin")]


def _q3_k(codes: U8, params: Params) -> list[U8]:
    return [_runs(_high(codes, 2), 1, 32), _runs(_low(codes, 2), 2, 32), _six_bits(params), *_halves(params, "d")]


def _q5_k(codes: U8, params: Params) -> list[U8]:
    quants = [_runs(_high(codes, 4), 1, 32), _runs(_low(codes, 4), 4, 32)]
    return [*_halves(params, "d", "dmin"), _pairs(params), *quants]


def _q6_k(codes: U8, params: Params) -> list[U8]:
    return [_runs(_low(codes, 4), 4, 64), _runs(_high(codes, 4), 2, 32), params["scales"].view(np.uint8), *_halves(params, "d")]


def _iq4_xs(codes: U8, params: Params) -> list[U8]:
    scales = _biased(params)
    return [*_halves(params, "d"), _runs(_high(scales, 4), 2, 1), _runs(_low(scales, 4), 4, 1), _runs(codes, 4, 16)]


_LAYOUTS: dict[str, Layout] = {
    "q4_0": lambda codes, params: [*_halves(params, "d"), _runs(codes, 4, 16)],
    "q4_1": lambda codes, params: [*_halves(params, "d", "m"), _runs(codes, 4, 16)],
    "q5_0": lambda codes, params: [*_halves(params, "d"), *_fifth_bits(codes)],
    "q5_1": lambda codes, params: [*_halves(params, "d", "m"), *_fifth_bits(codes)],
    "q8_0": lambda codes, params: [*_halves(params, "d"), codes ^ SIGN],
    "iq4_nl": lambda codes, params: [*_halves(params, "d"), _runs(codes, 4, 16)],
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": lambda codes, params: [*_halves(params, "d", "dmin"), _pairs(params), _runs(codes, 4, 32)],
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_xs": _iq4_xs,
    "tq2_0": lambda codes, params: [_runs(codes, 2, 32), *_halves(params, "d")],
    "mxfp4": lambda codes, params: [params["e"][..., None], _runs(codes, 4, 16)],
}
BLOCK_TYPES = {name: GGMLQuantizationType[name.upper()] for name in (*_LAYOUTS, *(grid.name for grid in LATTICE_GRIDS))}
