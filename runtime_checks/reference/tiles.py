"""Layout 1 of MatMulAdaDim read back by numpy alone (docs/reference/matmul-adadim.md): tiles of 16 outputs, blocks of 32 inputs.

In a line of 64 bytes, output n of the tile owns bytes 4n to 4n + 3: one for each of four input channels, a step. A block of
eight steps takes ``bits`` lines::

    8 bits   line p: step p
    4 bits   line p // 2, step p in the low nibble if p is even
    2 bits   line p // 4, step p in bits 2 * (p % 4) and the next
    3 bits   line p // 2, step p in bits 0 to 2 if p is even, else in 3 to 5; of steps 6 and 7 the low two bits in the highest
             of lines 0 and 1, the high bit in bit p of line 2
"""

from __future__ import annotations

import numpy as np

from runtime_checks.reference.decode import U8, Array, unpack

TILE, STEPS, STEP = 16, 8, 4


def tile_codes(packed: U8, bits: int) -> U8:
    """U8[tiles, bytes] -> codes U8[tiles * 16, blocks * 32], filling included."""
    tiles = len(packed)
    lines = packed.reshape(tiles, -1, bits, TILE, STEP)
    codes = np.stack([_step(lines, bits, p) for p in range(STEPS)], axis=2)  # [tile, block, step, output, input]
    return codes.transpose(0, 3, 1, 2, 4).reshape(tiles * TILE, -1)


def _step(lines: U8, bits: int, p: int) -> U8:
    if bits == 3 and p >= 6:
        return lines[:, :, p - 6] >> np.uint8(6) | (lines[:, :, 2] >> np.uint8(p) & np.uint8(1)) << np.uint8(2)
    in_byte = 8 // bits
    return lines[:, :, p // in_byte] >> np.uint8(bits * (p % in_byte)) & np.uint8((1 << bits) - 1)


def tile_scales(stored: Array, groups: int, per_oc: bool) -> Array:
    """[tiles, groups * 16] -> [tiles * 16, groups], or [groups, inputs] -> [inputs, groups]."""
    return stored.reshape(-1, groups, TILE).transpose(0, 2, 1).reshape(-1, groups) if per_oc else stored.T


def tile_zero_points(packed: U8, bits: int, groups: int, per_oc: bool) -> U8:
    """Zero points U8[rows, groups], of a single row if all rows share it; those of 3 bits take 4."""
    width = 4 if bits == 3 else bits
    if not per_oc:
        return packed.T if packed.shape[1] == 1 else unpack(packed, width, packed.shape[1] * 8 // width).T
    words = -(-groups * width // 32)
    streams = packed.reshape(len(packed), words, -1, 4).transpose(0, 2, 1, 3)  # [tile, output, word, byte]
    return unpack(streams.reshape(-1, words * 4), width, groups)
