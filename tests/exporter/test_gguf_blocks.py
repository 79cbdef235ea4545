"""Block bytes against literals, and against gguf-py's decoder on random codes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from exporter.gguf.blocks import BLOCK_TYPES, pack_blocks
from quantize.blocks import dequantize
from quantize.errors import ExportError
from quantize.grids import BLOCK_GRIDS, GRIDS, make_grid
from quantize.rounding.rtn import rtn
from quantize.types import Axis, QuantizedTensor
from tests import word_blocks
from tests.cases import weight_of

ONE, MINUS_TWO = "003c", "00c0"  # float16, little-endian
# codes 0 1 2 .. 31 (modulo the grid's size): every position has its own value, so a wrong order shows
NIBBLES = "".join(f"{i:x}{i:x}" for i in range(16))  # code i below, code i + 16 (the same modulo 16) above
GOLDEN = {
    "q4_0": ONE + NIBBLES,
    "q4_1": ONE + MINUS_TWO + NIBBLES,
    "q5_0": ONE + "0000ffff" + NIBBLES,
    "q5_1": ONE + MINUS_TWO + "0000ffff" + NIBBLES,
    "q8_0": ONE + "".join(f"{0x80 + i:02x}" for i in range(32)),  # int8 -128, -127, ...
    "iq4_nl": ONE + NIBBLES,
    "q2_k": "".join(f"{15 - i:x}{i:x}" for i in range(16)) + "0055aaff" * 16 + ONE + MINUS_TWO,
    "q3_k": "00000000ffffffff" * 4 + "0055aaff" * 16 + "004488cc" * 2 + "e4" * 4 + ONE,
    "q4_k": ONE + MINUS_TWO + "0154a2ff0251a1fe657687dc" + NIBBLES * 8,
    "q5_k": ONE + MINUS_TWO + "0154a2ff0251a1fe657687dc" + ("00" * 16 + "ff" * 16) + NIBBLES * 8,
    "q6_k": NIBBLES * 8 + ("88" * 16 + "dd" * 16) * 2 + "f8f9fafbfcfdfeff0001020304050607" + ONE,
    "iq4_xs": ONE + "50fa" + "80" * 4 + NIBBLES * 8,
    "tq2_0": "0055aaff" * 16 + ONE,
    "mxfp4": "82" + NIBBLES,
}
GOLDEN |= word_blocks.STORED
SIX_BITS = {"scales": [1, 20, 34, 63, 5, 22, 39, 60], "mins": [2, 17, 33, 62, 6, 23, 40, 61]}
WHOLE_KEYS = ("scales", "mins", "e")
WHOLE = {  # the whole numbers of those super-blocks
    "q2_k": {"scales": range(16), "mins": range(15, -1, -1)},
    "q3_k": {"scales": range(-32, 32, 4)},
    "q4_k": SIX_BITS,
    "q5_k": SIX_BITS,
    "q6_k": {"scales": range(-8, 8)},
    "iq4_xs": {"scales": range(-32, 32, 8)},
} | {name: {"scales": scales} for name, scales in word_blocks.SCALES.items()}


def tensor(name, codes, rng=None):
    grid = GRIDS[name]
    params = {}
    for key, fitted in grid.fit(np.zeros((len(codes), codes.shape[1] // grid.block_size, grid.block_size), np.float32)).items():
        value = np.broadcast_to({"d": 1.0, "m": -2.0, "dmin": -2.0, "e": 130}.get(key) or list(WHOLE[name][key]), fitted.shape)
        if rng is not None:
            value = rng.permuted(value, axis=-1) if key in WHOLE_KEYS else rng.standard_normal(fitted.shape)
        params[key] = value.astype(fitted.dtype)
    return QuantizedTensor("t", codes.astype(np.uint8), Axis.PER_OC, grid, params)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name):
    steps = np.arange(GRIDS[name].block_size) % 2 ** GRIDS[name].bits
    codes = (word_blocks.codes(name) if name in word_blocks.STORED else steps)[None]
    assert pack_blocks(tensor(name, codes)).tobytes().hex() == GOLDEN[name]


def test_nibble_order():
    codes = np.zeros((1, 32))
    codes[0, 1], codes[0, 17] = 3, 12
    assert pack_blocks(tensor("q4_0", codes)).tobytes()[2:4].hex() == "00c3"


@pytest.mark.parametrize("name", GOLDEN)
def test_gguf_py_decodes_the_same_bits(name):
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 2 ** GRIDS[name].bits, (5, 768))
    if name in word_blocks.STORED:
        codes = rtn("t", weight_of((5, 768)), GRIDS[name], Axis.PER_OC).codes
    q = tensor(name, codes, rng)
    decoded = gguf.dequantize(pack_blocks(q), BLOCK_TYPES[name])
    assert decoded.view(np.uint32).tolist() == dequantize(q).view(np.uint32).tolist()


def test_every_ggml_grid_has_blocks():
    assert set(BLOCK_TYPES) == set(BLOCK_GRIDS) == set(GOLDEN)


@pytest.mark.parametrize(
    ("name", "place", "bit", "message"),
    [
        ("iq3_s", 5, 1, "t: some codes are no word of grid iq3_s; quantize again"),
        ("iq2_xs", 5, 4, "t: an odd number of eight weights is negative, which grid iq2_xs cannot say; quantize again"),
    ],
)
def test_codes_that_are_no_words_are_refused(name, place, bit, message):
    codes = word_blocks.codes(name)[None]
    codes[0, place] ^= bit
    with pytest.raises(ExportError, match=message):
        pack_blocks(tensor(name, codes))


def test_the_int_grid_has_none():
    params = {"scale": np.ones((1, 1), np.float32), "zero_point": np.zeros((1, 1), np.uint8)}
    q = QuantizedTensor("t", np.zeros((1, 32), np.uint8), Axis.PER_OC, make_grid("int", 4, 32), params)
    with pytest.raises(ExportError, match=r"t: grid int is no ggml block; quantize again with target='llama.cpp'"):
        pack_blocks(q)
