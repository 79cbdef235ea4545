"""Our fits and decoders against libggml's own."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.blocks import dequantize, spread, to_blocks
from quantize.types import Axis, QuantizedTensor
from runtime_checks.ggml_quantizer import ggml_dequantize, ggml_quantize
from runtime_checks.reference import BLOCK_BYTES, decode_blocks
from tests.cases import GRIDS, grid_id, weight_of
from tests.runtime_checks.made import random_blocks


@pytest.mark.parametrize("kind", sorted(BLOCK_BYTES))
def test_random_blocks_decode_as_in_libggml(kind):
    data = random_blocks(kind, 4, 3, np.random.default_rng(5))
    np.testing.assert_array_equal(decode_blocks(kind, data).view(np.uint32), ggml_dequantize(kind, data).view(np.uint32))


def fitted(grid, weight, importance):
    params = grid.fit(to_blocks(weight, grid.block_size), to_blocks(importance, grid.block_size))
    scale, zero = (spread(value, grid.group_size, weight.shape[1]) for value in grid.scale_zero(params))
    return dequantize(QuantizedTensor("w", grid.encode(weight, scale, zero), Axis.PER_OC, grid, params))


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.name not in ("int", "q8_0")], ids=grid_id)
def test_our_fit_is_no_worse_than_libggml_s(grid):
    weight = weight_of((24, 1024))
    importance = np.random.default_rng(2).standard_normal(1024).astype(np.float32) ** 2
    kind = grid.name.upper()
    theirs = decode_blocks(kind, ggml_quantize(kind, weight, importance))
    loss = [float(np.sum(np.square(value - weight) * importance)) for value in (fitted(grid, weight, importance), theirs)]
    assert loss[0] <= loss[1]
