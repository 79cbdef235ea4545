"""Our fits and decoders against libggml's own."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.blocks import dequantize, to_blocks
from quantize.grids import BLOCK_GRIDS
from quantize.rounding.rtn import nearest_codes
from quantize.types import Axis, QuantizedTensor
from runtime_checks.reference.decode import BLOCK_BYTES, decode_blocks
from runtime_checks.runtimes.ggml_quantizer import ggml_dequantize, ggml_quantize
from tests.cases import GRIDS, grid_id, weight_of
from tests.runtime_checks.made import random_blocks


@pytest.mark.parametrize("kind", sorted(BLOCK_BYTES))
def test_random_blocks_decode_as_in_libggml(kind):
    data = random_blocks(kind, 4, 3, np.random.default_rng(5))
    np.testing.assert_array_equal(decode_blocks(kind, data).view(np.uint32), ggml_dequantize(kind, data).view(np.uint32))


def fitted(grid, weight, importance):
    params = grid.fit(to_blocks(weight, grid.block_size), to_blocks(importance, grid.block_size))
    return dequantize(QuantizedTensor("w", nearest_codes(weight, grid, params, importance), Axis.PER_OC, grid, params))


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.name in BLOCK_GRIDS.keys() - {"q8_0"}], ids=grid_id)
def test_our_fit_is_no_worse_than_libggml_s(grid):
    weight = weight_of((24, 1024))
    importance = np.random.default_rng(2).standard_normal(1024).astype(np.float32) ** 2
    kind = grid.name.upper()
    theirs = decode_blocks(kind, ggml_quantize(kind, weight, importance))
    loss = [float(np.sum(np.square(value - weight) * importance)) for value in (fitted(grid, weight, importance), theirs)]
    assert loss[0] <= loss[1]


@pytest.mark.parametrize(
    "grid", [grid for grid in GRIDS if grid.name != "int" and grid.block_size > grid.group_size], ids=grid_id
)
def test_weights_of_no_importance_are_left_as_well_as_by_libggml(grid):
    """In one group, in two and in a part of one; what libggml gives up there (an error of 1) is no measure."""
    weight, size = weight_of((24, 1024)), grid.group_size
    for run in (slice(0, size), slice(2 * size, 4 * size), slice(size, size + size // 2)):
        importance = np.random.default_rng(2).standard_normal(1024).astype(np.float32) ** 2
        importance[run] = 0
        theirs = decode_blocks(grid.name.upper(), ggml_quantize(grid.name.upper(), weight, importance))
        error = [np.linalg.norm((value - weight)[:, run]) for value in (fitted(grid, weight, importance), theirs)]
        assert error[0] <= min(2.5 * error[1], 0.7 * np.linalg.norm(weight[:, run]))
