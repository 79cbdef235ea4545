from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.onnx.matmul_nbits import matmul_nbits
from exporter.onnx.split import split_form
from exporter.onnx.tensors import Wire, pack_bits
from exporter.onnx_cost import block_size, linear_bytes, linear_nodes, linear_seconds
from quantize import Axis, make_grid
from quantize.store.record import TensorRecord

ON_CONSTANTS = {"Cast", "Sub", "Mul zero", "Reshape zero", "Transpose", "Split scales", "Cast scale"}  # folded at load
GOLDEN = [
    (2, [1, 2, 3, 0, 3], "3903"),
    (3, [1, 2, 3, 4, 5, 6, 7, 0], "d1581f"),  # the example of docs/reference/matmul-adadim.md
    (4, [1, 2, 15], "210f"),
    (8, [1, 255], "01ff"),
]


@pytest.mark.parametrize(("bits", "values", "expected"), GOLDEN)
def test_the_first_value_takes_the_low_bits(bits, values, expected):
    assert pack_bits(np.array([values], np.uint8), bits).tobytes().hex() == expected


@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packing_is_one_bit_stream(bits, count, seed):
    values = np.random.default_rng(seed).integers(0, 2**bits, (3, count)).astype(np.uint8)
    packed = pack_bits(values, bits)
    for row, stream in zip(values, packed, strict=True):
        number = int.from_bytes(stream.tobytes(), "little")
        assert [(number >> bits * i) & (2**bits - 1) for i in range(count)] == row.tolist()
        assert number >> bits * count == 0


@pytest.mark.parametrize(
    ("bits", "group_size", "length", "expected"),
    [(4, 64, 576, 64), (4, 1024, 576, 64), (4, 1024, 1024, 1024), (2, 256, 512, 128), (4, 64, 100, 64), (4, 16, 40, 16)],
)
def test_a_block_is_the_group_unless_a_part_of_it_stores_less(bits, group_size, length, expected):
    assert block_size(make_grid("int", bits, group_size), length) == expected


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale_dtype", ["float16", "float32"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [16, 64, 1024])
@pytest.mark.parametrize("shape", [(64, 96), (100, 72), (16, 5000), (2048, 600), (129, 40000)])
def test_cost_is_that_of_what_is_written(shape, group_size, bits, scale_dtype, symmetric):
    grid = make_grid("int", bits, group_size, symmetric, scale_dtype)
    for axis, write in ((Axis.PER_OC, matmul_nbits), (Axis.PER_IC, split_form)):
        form = write(TensorRecord("a.weight", shape, grid, axis=axis), Wire("x", "y"), 4)
        running = [node for node in form.nodes if node.name.rpartition("/")[2] not in ON_CONSTANTS]
        assert linear_nodes(grid, axis, shape) == len(running)
        assert linear_bytes(grid, axis, shape) == sum(planned.nbytes for planned in form.planned)


def test_the_split_form_costs_more_for_smaller_groups():
    shape = (1536, 576)
    per_oc, per_ic = (
        [linear_seconds(make_grid("int", 4, group), axis, shape) for group in (32, 64, 128)]
        for axis in (Axis.PER_OC, Axis.PER_IC)
    )
    assert per_ic[0] > per_ic[1] > per_ic[2] > 1.5 * max(per_oc)
