"""The second opinion: weights decoded from a file's bytes by numpy alone, but for the books of words (``iq``).

Nothing in this folder imports any of our packages:
a mistake made while packing cannot be made again here. Everything is written for the eye, not for speed.

Blocks of ggml, 32 weights each; ``d`` and ``m`` are float16, the high bits of 5-bit codes one little-endian uint32::

    Q4_0  d     qs[16]          18 bytes   w = d * (q - 8)
    Q4_1  d m   qs[16]          20 bytes   w = d * q + m
    Q5_0  d     qh[4] qs[16]    22 bytes   w = d * (q - 16)
    Q5_1  d m   qh[4] qs[16]    24 bytes   w = d * q + m
    Q8_0  d     qs[32] (int8)   34 bytes   w = d * q
    IQ4_NL  d   qs[16]          18 bytes   w = d * LEVELS[q]
    MXFP4   e   qs[16]          17 bytes   w = 2**(e - 128) * MX_LEVELS[q], e one unsigned byte

Byte i of ``qs`` holds the low 4 bits of weight i (low nibble) and of weight i + 16 (high nibble); bit i of ``qh`` is
the fifth bit of weight i.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_checks.reference.iq import WORD_BLOCK_BYTES, decode_words, word_codes
from runtime_checks.reference.k import LEVELS, SUPER_BLOCK, SUPER_BLOCK_BYTES, decode_super_blocks, super_block_codes

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Array = NDArray[Any]

BLOCK = 32
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "IQ4_NL": 18, "MXFP4": 17}
BLOCK_BYTES |= SUPER_BLOCK_BYTES | WORD_BLOCK_BYTES
MX_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)  # kvalues_mxfp4
FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class DamagedFileError(ValueError):
    """The file is not what it claims to be; the message says where."""


def block_weights(kind: str) -> int:
    """Weights in one block."""
    return SUPER_BLOCK if kind in SUPER_BLOCK_BYTES | WORD_BLOCK_BYTES else BLOCK


def block_codes(kind: str, data: U8) -> tuple[U8, dict[str, Array]]:
    """The stored integers of ggml blocks.

    ``data`` U8[rows, n_blocks * block bytes] -> (codes U8[rows, n_blocks * 32], {"d", "m"} F16[rows, n_blocks]).
    Codes are unsigned; Q8_0, whose block holds int8, gives int8 + 128. Super-blocks: see ``super_block_codes``, ``word_codes``.
    """
    if kind in WORD_BLOCK_BYTES:
        return word_codes(kind, data)
    if kind in SUPER_BLOCK_BYTES:
        return super_block_codes(kind, data)
    rows = data.shape[0]
    blocks = data.reshape(rows, -1, BLOCK_BYTES[kind])
    if kind == "MXFP4":
        nibbles = np.concatenate([blocks[..., 1:] & 0x0F, blocks[..., 1:] >> 4], axis=-1)
        return nibbles.reshape(rows, -1), {"e": blocks[..., 0]}
    params: dict[str, Array] = {"d": _float16(blocks[..., 0:2])}
    rest = blocks[..., 2:]
    if kind in ("Q4_1", "Q5_1"):
        params["m"] = _float16(rest[..., 0:2])
        rest = rest[..., 2:]
    if kind == "Q8_0":
        return (rest.view(np.int8).astype(np.int16) + 128).astype(np.uint8).reshape(rows, -1), params
    high = np.zeros((*rest.shape[:-1], BLOCK), np.uint8)
    if kind in ("Q5_0", "Q5_1"):
        high = np.unpackbits(rest[..., 0:4], axis=-1, bitorder="little")
        rest = rest[..., 4:]
    low = np.concatenate([rest & 0x0F, rest >> 4], axis=-1)
    return (low | high << 4).reshape(rows, -1), params


def decode_blocks(kind: str, data: U8) -> F32:
    """The weights of ggml blocks, U8[rows, bytes] -> F32[rows, cols]; every step in float32, as ggml does it."""
    if kind in WORD_BLOCK_BYTES:
        return decode_words(kind, data)
    if kind in SUPER_BLOCK_BYTES:
        return decode_super_blocks(kind, data)
    codes, params = block_codes(kind, data)
    q = codes.reshape(codes.shape[0], -1, BLOCK).astype(np.float32)
    if kind == "MXFP4":
        power = np.ldexp(np.float32(1), params["e"].astype(np.int32) - 128)[..., None]
        return (power * MX_LEVELS[codes].reshape(q.shape)).reshape(codes.shape)
    d = params["d"].astype(np.float32)[..., None]
    if kind == "IQ4_NL":
        weights = d * LEVELS[codes].reshape(q.shape)
    elif "m" in params:
        weights = d * q + params["m"].astype(np.float32)[..., None]
    else:
        weights = d * (q - np.float32({"Q4_0": 8, "Q5_0": 16, "Q8_0": 128}[kind]))
    return weights.reshape(codes.shape)


def decode_floats(kind: str, data: U8) -> F32:
    """Little-endian F32, F16 or BF16 values, U8[rows, bytes] -> F32[rows, cols]."""
    data = np.ascontiguousarray(data)
    if kind == "F32":
        return data.view("<f4").astype(np.float32)
    if kind == "F16":
        return data.view("<f2").astype(np.float32)
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


def unpack(packed: U8, bits: int, count: int) -> U8:
    """Codes of ``bits`` bits from a little-endian bit stream along the last axis: U8[..., bytes] -> U8[..., count].

    Code i lies in bits [i * bits, (i + 1) * bits) of the stream, its lowest bit first: for 4 bits the low nibble
    holds code 0, for 2 bits the two lowest bits do; 3-bit codes cross bytes.
    """
    if 8 % bits == 0:  # no code crosses a byte: five times faster
        split = packed[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8((1 << bits) - 1)
        return split.reshape(*packed.shape[:-1], -1)[..., :count]
    stream = np.unpackbits(np.ascontiguousarray(packed), axis=-1, bitorder="little")[..., : count * bits]
    groups = stream.reshape(*stream.shape[:-1], count, bits)
    codes: U8 = (groups << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.uint8)
    return codes


@np.errstate(over="ignore", invalid="ignore")  # whatever the bytes say
def decode_affine(codes: Array, scale: F32, zero_point: U8, group: NDArray[np.intp]) -> F32:
    """``(q - zero_point) * scale`` in float32, the order of ONNX's DequantizeLinear.

    codes U8 or I8[rows, cols]; scale F32[rows, n_groups], zero_point U8[rows, n_groups]; group[cols]: which group a column is in.
    """
    weights = codes.astype(np.float32)
    weights -= zero_point.take(group, axis=1)
    weights *= scale.take(group, axis=1)
    return weights


def matmul(x: F32, weight: F32) -> NDArray[np.float64]:
    """``x @ weight.T`` for x F32[T, IC], weight F32[OC, IC], accumulated in float64."""
    return x.astype(np.float64) @ weight.astype(np.float64).T


def _float16(two_bytes: U8) -> NDArray[np.float16]:
    """U8[..., 2] -> F16[...]."""
    return np.ascontiguousarray(two_bytes).view("<f2")[..., 0]
