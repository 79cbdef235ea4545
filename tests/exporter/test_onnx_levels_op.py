"""MatMulLevels: its bytes against literal ones, and its portable body in onnxruntime, which has no kernel of that name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto

from exporter.onnx.levels_op import levels_function, matmul_levels, points_of
from exporter.onnx.tensors import Wire
from exporter.onnx.tiles import pack_pairs
from exporter.onnx_cost import tile_bytes
from quantize import Axis, QuantizedTensor, dequantize
from quantize.errors import ExportError
from quantize.store.record import TensorRecord
from tests.cases import LEVEL_GRIDS, grid_id
from tests.exporter.onnx_stores import one_node_model, rtn

FLOAT_SUM = 1e-5  # two float32 summation orders over at most 200 products
SHAPES = [(50, 70, 32), (96, 64, 32), (36, 200, 128), (17, 98, 256)]  # OC, IC, group: ragged, even, several, the whole row
# codes of output 1 for the 32 inputs of a block, and bytes 4 to 7 (its own) of each line, from docs/reference/matmul-levels.md
RAMP = {4: np.arange(16), 6: 4 * np.arange(16) + 3}
LINES = {
    4: [[0x40, 0x51, 0x62, 0x73], [0xC8, 0xD9, 0xEA, 0xFB]],
    # step 3 is 51, 55, 59, 63: its bits 0 and 1 are 3, bits 2 and 3 count, bits 4 and 5 are 3
    6: [[0xC3, 0xC7, 0xCB, 0xCF], [0x13, 0x57, 0x9B, 0xDF], [0xE3, 0xE7, 0xEB, 0xEF]],
}


@pytest.mark.parametrize("bits", LINES)
def test_pairs(bits):
    points = np.zeros((3, 20), np.uint8)
    points[1, :16] = RAMP[bits]
    points[2, 19] = 1
    packed = pack_pairs(points, bits)
    assert packed.shape == (1, 2 * bits // 2 * 64)
    lines = packed.reshape(2, bits // 2, 16, 4)
    assert lines[0, :, 1].tolist() == LINES[bits]
    assert np.argwhere(lines[0]).shape[0] == np.count_nonzero(lines[0, :, 1])  # nothing in other outputs
    assert np.argwhere(lines[1]).tolist() == [[0, 2, 3]] and lines[1].max() == 1  # pair 19 is number 3 of the second block


def test_codes_that_are_no_pair_are_refused():
    grid = next(grid for grid in LEVEL_GRIDS if grid.name == "hg2")
    tensor = rtn("w.weight", np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32), grid, Axis.PER_OC)
    points = points_of(tensor, grid)
    levels = np.array(grid.levels)[:, points].transpose(1, 2, 0).reshape(4, 32)
    np.testing.assert_array_equal(levels, grid.values[tensor.codes])
    codes = tensor.codes.copy()
    codes[2, 6:8] = 0
    with pytest.raises(ExportError, match=r"w.weight: codes 6 and 7 of row 2 are no pair of grid hg2; quantize again"):
        points_of(replace(tensor, codes=codes), grid)


def model_of(weight: np.ndarray, grid, axis: Axis) -> tuple[ModelProto, QuantizedTensor]:
    record = TensorRecord("w.weight", weight.shape, grid, axis=axis)
    q = rtn(record.name, weight, grid, axis)
    form = matmul_levels(record, Wire("x", "y"), 4)
    own = sum(value.nbytes for name, value in form.constants.items() if name == "w.weight.levels")
    assert sum(planned.nbytes for planned in form.planned) + own == tile_bytes(grid, axis, weight.shape)
    return one_node_model(form, weight.shape, q, levels_function()), q


@pytest.mark.parametrize("level", [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL])
@pytest.mark.parametrize("axis", Axis)
@pytest.mark.parametrize("grid", LEVEL_GRIDS, ids=grid_id)
def test_the_body_multiplies_by_the_decoded_weight(grid, axis, level):
    if grid.dims == 2 and axis is Axis.PER_IC:
        return  # the target refuses it
    rng = np.random.default_rng(grid.bits)
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    for oc, ic, group_size in SHAPES:
        model, q = model_of(rng.normal(size=(oc, ic)).astype(np.float32), grid.grouped(group_size), axis)
        x = rng.normal(size=(2, 3, ic)).astype(np.float32)
        (y,) = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})
        np.testing.assert_allclose(y, x @ dequantize(q).T, atol=FLOAT_SUM * np.abs(y).max(), rtol=0)


@pytest.mark.parametrize("grid", LEVEL_GRIDS, ids=grid_id)
def test_onnxruntime_keeps_the_weights_packed(grid, tmp_path):
    weight = np.random.default_rng(0).normal(size=(512, 1024)).astype(np.float32)
    model, _ = model_of(weight, grid, Axis.PER_OC)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options)
    # scales are widened, codes are not
    assert (tmp_path / "optimized.onnx").stat().st_size < 1.25 * model.ByteSize() < weight.nbytes / 5
