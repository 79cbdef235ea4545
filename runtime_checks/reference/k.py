"""ggml's super-blocks of 256 weights, decoded with every weight's byte and shift written out; numpy alone.

::

    Q2_K    scales[16]  qs[64]  d  dmin               84 bytes   w = (d * s) * q - dmin * m        16 groups of 16
    Q3_K    hmask[32]  qs[64]  scales[12]  d         110 bytes   w = (d * s) * (q - 4)             16 groups of 16
    Q4_K    d  dmin  scales[12]  qs[128]             144 bytes   w = (d * s) * q - dmin * m         8 groups of 32
    Q5_K    d  dmin  scales[12]  qh[32]  qs[128]     176 bytes   w = (d * s) * q - dmin * m         8 groups of 32
    Q6_K    ql[128]  qh[64]  scales[16] (int8)  d    210 bytes   w = (d * s) * (q - 32)            16 groups of 16
    IQ4_XS  d  scales_h[2]  scales_l[4]  qs[128]     136 bytes   w = (d * s) * LEVELS[q]            8 groups of 32
    TQ2_0   qs[64]  d                                 66 bytes   w = d * (q - 1)                   one group
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Array = NDArray[Any]
Stored = tuple[U8, dict[str, Array]]

SUPER_BLOCK = 256
SUPER_BLOCK_BYTES = {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210, "IQ4_XS": 136, "TQ2_0": 66}
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)  # kvalues_iq4nl
MIDDLE = {"Q3_K": 4, "Q6_K": 32, "TQ2_0": 1}

WEIGHT = np.arange(SUPER_BLOCK)
HALF, EIGHTH = WEIGHT // 128, WEIGHT // 32  # which half, and which 32, a weight lies in
FOUR = np.uint8(4)
GROUP_16, GROUP_8 = np.arange(16), np.arange(8)


def super_block_codes(kind: str, data: U8) -> Stored:
    """U8[rows, n * block bytes] -> (codes U8[rows, n * 256], params), params as the file says them.

    "d" and "dmin" F16[rows, n]; "scales" (I8 where they have a sign, else U8) and "mins" U8[rows, n, groups].
    """
    blocks = data.reshape(len(data), -1, SUPER_BLOCK_BYTES[kind])
    codes, params = _READERS[kind](blocks)
    return codes.reshape(len(data), -1), params


def decode_super_blocks(kind: str, data: U8) -> F32:
    """U8[rows, bytes] -> F32[rows, cols]; every step in float32, as ggml does it."""
    codes, params = super_block_codes(kind, data)
    scale = params["d"].astype(np.float32)[..., None]
    if "scales" in params:
        scale = scale * params["scales"].astype(np.float32)
    q = codes.reshape(*scale.shape, -1).astype(np.float32)
    if "mins" in params:
        low = params["dmin"].astype(np.float32)[..., None] * params["mins"].astype(np.float32)
        weights = scale[..., None] * q - low[..., None]
    else:
        weights = scale[..., None] * (LEVELS[codes].reshape(q.shape) if kind == "IQ4_XS" else q - np.float32(MIDDLE[kind]))
    return weights.reshape(codes.shape)


def _bits(data: U8, place: Array, shift: Array, count: int) -> U8:
    """``count`` bits of byte ``place[i]`` from bit ``shift[i]`` on, for every i."""
    return data[..., place] >> shift.astype(np.uint8) & np.uint8(2**count - 1)


def _float16(two_bytes: U8) -> Array:
    return np.ascontiguousarray(two_bytes).view("<f2")[..., 0]


def _scales_and_mins(stored: U8) -> dict[str, Array]:
    """Twelve bytes, eight scales and eight minimums of six bits (``get_scale_min_k4``)."""
    scales, mins = np.empty((2, *stored.shape[:-1], 8), np.uint8)
    for j in range(8):
        if j < 4:
            scales[..., j], mins[..., j] = stored[..., j] & 63, stored[..., j + 4] & 63
        else:
            scales[..., j] = stored[..., j + 4] & 15 | stored[..., j - 4] >> 6 << 4
            mins[..., j] = stored[..., j + 4] >> 4 | stored[..., j] >> 6 << 4
    return {"scales": scales, "mins": mins}


def _two_bits(qs: U8) -> U8:
    return _bits(qs, 32 * HALF + WEIGHT % 32, 2 * (EIGHTH % 4), 2)


def _signed(six_bits: U8) -> Array:
    return six_bits.astype(np.int8) - np.int8(32)


def _q2_k(b: U8) -> Stored:
    params = {"d": _float16(b[..., 80:82]), "dmin": _float16(b[..., 82:84])}
    return _two_bits(b[..., 16:80]), params | {"scales": b[..., :16] & 15, "mins": b[..., :16] >> 4}


def _q3_k(b: U8) -> Stored:
    third, stored = _bits(b[..., :32], WEIGHT % 32, EIGHTH, 1), b[..., 96:108]
    scales = _bits(stored, GROUP_16 % 8, 4 * (GROUP_16 // 8), 4) | _bits(stored, 8 + GROUP_16 % 4, 2 * (GROUP_16 // 4), 2) << FOUR
    return _two_bits(b[..., 32:96]) | third << np.uint8(2), {"d": _float16(b[..., 108:110]), "scales": _signed(scales)}


def _q4_k(b: U8) -> Stored:
    params = {"d": _float16(b[..., 0:2]), "dmin": _float16(b[..., 2:4])}
    codes = _bits(b[..., 16:144], 32 * (WEIGHT // 64) + WEIGHT % 32, 4 * (EIGHTH % 2), 4)
    return codes, params | _scales_and_mins(b[..., 4:16])


def _q5_k(b: U8) -> Stored:
    params = {"d": _float16(b[..., 0:2]), "dmin": _float16(b[..., 2:4])}
    low = _bits(b[..., 48:176], 32 * (WEIGHT // 64) + WEIGHT % 32, 4 * (EIGHTH % 2), 4)
    return low | _bits(b[..., 16:48], WEIGHT % 32, EIGHTH, 1) << FOUR, params | _scales_and_mins(b[..., 4:16])


def _q6_k(b: U8) -> Stored:
    low = _bits(b[..., :128], 64 * HALF + WEIGHT % 64, 4 * (WEIGHT % 128 // 64), 4)
    scales = np.ascontiguousarray(b[..., 192:208]).view(np.int8)
    return low | _two_bits(b[..., 128:192]) << FOUR, {"d": _float16(b[..., 208:210]), "scales": scales}


def _iq4_xs(b: U8) -> Stored:
    codes = _bits(b[..., 8:136], 16 * EIGHTH + WEIGHT % 16, 4 * (WEIGHT // 16 % 2), 4)
    low, high = _bits(b[..., 4:8], GROUP_8 // 2, 4 * (GROUP_8 % 2), 4), _bits(b[..., 2:4], GROUP_8 // 4, 2 * (GROUP_8 % 4), 2)
    return codes, {"d": _float16(b[..., 0:2]), "scales": _signed(low | high << FOUR)}


_READERS: dict[str, Callable[[U8], Stored]] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
    "TQ2_0": lambda b: (_two_bits(b[..., :64]), {"d": _float16(b[..., 64:66])}),
}
