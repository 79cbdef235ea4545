"""The portable body of MatMulAdaDim in onnxruntime, which has no kernel of that name."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto

from exporter.onnx.adadim_op import adadim_function, matmul_adadim
from exporter.onnx.tensors import Wire
from quantize import Axis, dequantize, make_grid
from quantize.store.record import TensorRecord
from tests.exporter.onnx_stores import one_node_model, rtn

FLOAT_SUM = 1e-5  # two float32 summation orders over at most 100 products
SHAPES = [(50, 70, 16), (96, 64, 32), (36, 100, 128)]  # OC, IC, group: ragged, even, shorter than a group


def model_of(weight: np.ndarray, grid, axis: Axis) -> tuple[ModelProto, np.ndarray]:
    record = TensorRecord("w.weight", weight.shape, grid, axis=axis)
    q = rtn(record.name, weight, grid, axis)
    form = matmul_adadim(record, Wire("x", "y"), 4)
    return one_node_model(form, weight.shape, q, adadim_function()), dequantize(q)


@pytest.mark.parametrize("level", [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL])
@pytest.mark.parametrize(("symmetric", "scale_dtype"), [(False, "float16"), (True, "float16"), (False, "float32")])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", Axis)
def test_the_body_multiplies_by_the_decoded_weight(axis, bits, symmetric, scale_dtype, level):
    rng = np.random.default_rng(bits)
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    for oc, ic, group_size in SHAPES:
        model, decoded = model_of(
            rng.normal(size=(oc, ic)).astype(np.float32), make_grid("int", bits, group_size, symmetric, scale_dtype), axis
        )
        x = rng.normal(size=(2, 3, ic)).astype(np.float32)
        (y,) = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})
        np.testing.assert_allclose(y, x @ decoded.T, atol=FLOAT_SUM * np.abs(y).max(), rtol=0)


@pytest.mark.parametrize("axis", Axis)
def test_onnxruntime_keeps_the_weights_packed(axis, tmp_path):
    weight = np.random.default_rng(0).normal(size=(256, 512)).astype(np.float32)
    model, _ = model_of(weight, make_grid("int", 3, 64), axis)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options)
    size = (tmp_path / "optimized.onnx").stat().st_size
    assert size < 1.1 * model.ByteSize() < weight.nbytes / 5
