"""Block bytes against literals, and against gguf-py's decoder on random codes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from exporter.gguf_blocks import BLOCK_TYPES, pack_blocks
from quantize.blocks import dequantize
from quantize.errors import ExportError
from quantize.grids import GRIDS, make_grid
from quantize.types import Axis, QuantizedTensor

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
}


def tensor(name, codes, rng=None):
    grid = GRIDS[name]
    blocks = (len(codes), codes.shape[1] // grid.block_size)
    values = {"d": np.ones(blocks), "m": np.full(blocks, -2.0)}
    if rng is not None:
        values = {key: rng.standard_normal(blocks) for key in values}
    params = {key: values[key].astype(np.float16) for key in grid.fit(np.zeros((1, 32), np.float32))}
    return QuantizedTensor("t", codes.astype(np.uint8), Axis.PER_OC, grid, params)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name):
    codes = (np.arange(32) % 2 ** GRIDS[name].bits)[None]
    assert pack_blocks(tensor(name, codes)).tobytes().hex() == GOLDEN[name]


def test_nibble_order():
    codes = np.zeros((1, 32))
    codes[0, 1], codes[0, 17] = 3, 12
    assert pack_blocks(tensor("q4_0", codes)).tobytes()[2:4].hex() == "00c3"


@pytest.mark.parametrize("name", GOLDEN)
def test_gguf_py_decodes_the_same_bits(name):
    rng = np.random.default_rng(7)
    q = tensor(name, rng.integers(0, 2 ** GRIDS[name].bits, (5, 96)), rng)
    decoded = gguf.dequantize(pack_blocks(q), BLOCK_TYPES[name])
    assert decoded.view(np.uint32).tolist() == dequantize(q).view(np.uint32).tolist()


def test_every_ggml_grid_has_blocks():
    assert set(BLOCK_TYPES) == set(GRIDS) - {"int"} == set(GOLDEN)


def test_the_int_grid_has_none():
    params = {"scale": np.ones((1, 1), np.float32), "zero_point": np.zeros((1, 1), np.uint8)}
    q = QuantizedTensor("t", np.zeros((1, 32), np.uint8), Axis.PER_OC, make_grid("int", 4, 32), params)
    with pytest.raises(ExportError, match="t: grid int is no ggml block; quantize again with --target"):
        pack_blocks(q)
