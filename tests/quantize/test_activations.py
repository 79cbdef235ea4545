"""Grids of activations: bit for bit what onnxruntime and ggml make of the same numbers, and what is true of any of them."""

from __future__ import annotations

import ctypes

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantize.activations import ACTIVATIONS, BITS, BLOCK, Activation
from quantize.activations.grids import Blocks, Tokens, Whole
from quantize.llama_cpp.library import library

SUMS = 2.0**-20  # of a token's values times the zero point, which MatMulNBits adds and takes away again, in float32


def outliers(tokens: int, channels: int) -> np.ndarray:
    rng = np.random.default_rng(channels)
    x = rng.standard_t(3, (tokens, channels)) * rng.uniform(0.01, 10, channels)
    x[:, channels // 3] *= 100
    return x.astype(np.float32)


def ties(count: int = 40) -> np.ndarray:
    """Blocks whose other values lie halfway between two codes, as nearly as float32 has them."""
    peaks = np.random.default_rng(0).uniform(0.5, 2, (count, 1)).astype(np.float32)
    halves = (np.arange(BLOCK - 1, dtype=np.float32) + np.float32(0.5)) * (peaks / np.float32(127))
    return np.concatenate([peaks, halves], 1)


SAMPLES = {
    "normal": np.random.default_rng(1).standard_normal((7, 64)).astype(np.float32),
    "ragged": outliers(5, 50),
    "one token": outliers(1, 96),
    "outliers": outliers(300, 64),
    "ties": ties(),
    "halves": np.array([[-127.5, 127.5, 0.5, 1.5, -0.5, -1.5, 2.5]], np.float32),  # of a range whose step is 1
    "zeros": np.zeros((3, 40), np.float32),
    "a token of zeros": np.stack([np.zeros(33, np.float32), outliers(1, 33)[0]]),
    "negative": -np.abs(outliers(4, 64)),
    "positive": np.abs(outliers(4, 64)),
    "tiny": outliers(4, 64) * np.float32(1e-30),
}
EACH = pytest.mark.parametrize("x", SAMPLES.values(), ids=SAMPLES)
ALL = pytest.mark.parametrize("name", ACTIVATIONS)


def run(nodes: list, x: np.ndarray, **constants: np.ndarray) -> np.ndarray:
    """``y`` of ``x`` in onnxruntime."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", TensorProto.FLOAT, list(x.shape))],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


@EACH
def test_a_tensor_is_what_quantize_linear_makes_of_it(x):
    held = Activation.fitted("a8-tensor", x)
    nodes = [helper.make_node(f"{kind}Linear", inputs, ["q" if kind == "Quantize" else "y"]) for kind, inputs in LINEARS]
    scale, zero = np.float32(held.scale), np.uint8(held.zero_point)
    for values in (x, 3 * x, -x):  # what lies beyond the range too
        assert np.array_equal(held.round(values), run(nodes, values, scale=scale, zero=zero))


LINEARS = (("Quantize", ["x", "scale", "zero"]), ("Dequantize", ["q", "scale", "zero"]))


@EACH
def test_a_token_is_what_dynamic_quantize_linear_makes_of_it(x):
    dynamic = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"])
    nodes = [dynamic, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"])]
    expected = np.concatenate([run(nodes, x[row : row + 1]) for row in range(min(len(x), 20))])
    assert np.array_equal(Tokens(8).round(x, {})[:20], expected)


def through_nbits(x: np.ndarray, block: int, bits: int) -> np.ndarray:
    """What MatMulNBits multiplies at accuracy level 4: its weight is the identity."""
    channels = x.shape[1]
    blocks = -(-channels // block)
    codes = np.full((channels, blocks * block), 1 << bits - 1, np.uint8)
    codes[np.arange(channels), np.arange(channels)] += 1
    packed = codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
    sizes = {"K": channels, "N": channels, "bits": bits, "block_size": block, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", **sizes)
    return run([node], x, b=packed.reshape(channels, blocks, -1), s=np.ones((channels, blocks), np.float32))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("x", [SAMPLES[key] for key in ("normal", "outliers", "ties", "ragged", "one token", "zeros")])
def test_a_block_is_what_matmul_nbits_multiplies(x, block, bits):
    """In blocks as long as its weights' are."""
    error = np.abs(through_nbits(x, block, bits) - Blocks(8, block).round(x, {}))
    allowed = SUMS * 2 ** (bits - 1) * np.abs(x).sum(-1, keepdims=True)
    assert (error <= allowed).all()
    if x is SAMPLES["ties"]:  # another code would show
        assert (allowed < np.abs(blocks_of(x, block)).max(-1) / 127 / 2).all()


def blocks_of(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, -x.shape[1] % size))).reshape(len(x), -1, size)


@pytest.mark.parametrize("power", range(-3, 4))
def test_a_block_of_exact_products_is_exact(power):
    x = (np.random.default_rng(0).integers(-127, 128, (5, 64)) * 2.0**power).astype(np.float32)
    x[:, ::BLOCK] = 127 * 2.0**power  # so every scale is a power of two, and every sum a small integer times it
    assert np.array_equal(through_nbits(x, BLOCK, 8), Blocks(8).round(x, {}))
    assert np.array_equal(x, Blocks(8).round(x, {}))


@pytest.mark.parametrize("x", [SAMPLES[key] for key in ("normal", "outliers", "ties", "negative", "zeros")][:4])
def test_a_block_is_what_ggml_multiplies(x):
    """All codes are the same; ggml keeps the scale in float16."""
    codes, scale = np.empty((*x.shape[:1], x.shape[1] // 32, 34), np.uint8), np.abs(blocks_of(x, 32)).max(-1) / np.float32(127)
    function = library().quantize_row_q8_0
    function.restype, function.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    rows = np.ascontiguousarray(x)
    function(rows.ctypes.data, codes.ctypes.data, rows.size)
    halves, bytes_ = codes[..., :2].copy().view(np.float16)[..., 0], codes[..., 2:].view(np.int8)
    assert np.array_equal(halves, scale.astype(np.float16))
    assert np.array_equal((bytes_ * scale[..., None]).reshape(x.shape), Blocks(8).round(x, {}))


@ALL
@EACH
def test_what_is_rounded_stays(x, name):
    held = Activation.fitted(name, x)
    once = held.round(x)
    assert once.dtype == np.float32 and once.shape == x.shape
    np.testing.assert_allclose(held.round(once), once, rtol=1e-6)  # a scale that is found again may have moved by its last bit
    assert (once[x == 0] == 0).all()
    assert np.array_equal(Activation.fitted(name, np.zeros_like(x)).round(np.zeros_like(x)), np.zeros_like(x))


@ALL
@EACH
def test_errors_are_half_a_step(x, name):
    """Where values lie in the range that a scale was fitted to; an asymmetric range has moved by less than half a step."""
    grid, error = ACTIVATIONS[name], np.abs(Activation.fitted(name, x).round(x) - x)
    levels = np.float32(2**grid.bits)
    if isinstance(grid, Blocks):
        step = np.repeat(2 * np.abs(blocks_of(x, BLOCK)).max(-1) / (levels - 2), BLOCK, 1)[:, : x.shape[1]]
        assert (error <= step * 0.5001).all()
        return
    axis = -1 if isinstance(grid, Tokens) else None
    low, high = (np.asarray(end(x, axis=axis, keepdims=True)) for end in (np.min, np.max))
    step = (np.maximum(high, 0) - np.minimum(low, 0)) / (levels - 1)
    assert (error <= step * 1.0001).all()
    inside = (x > low + step) & (x < high - step)
    assert (error <= step * 0.5001)[inside].all()


@EACH
@pytest.mark.parametrize("kind", [Blocks, Tokens, Whole])
def test_more_bits_lose_less(x, kind):
    errors = [np.square(kind(bits).round(x, kind(bits).fit(x)) - x, dtype=np.float64).sum() for bits in sorted(BITS)]
    assert errors == sorted(errors, reverse=True)


@ALL
@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (np.zeros((0, 8), np.float32), "there are no tokens"),
        (np.array([[1, np.inf]], np.float32), "not finite"),
        (np.array([[1, np.nan]], np.float32), "not finite"),
    ],
)
def test_bad_samples_are_refused(name, sample, told):
    with pytest.raises(ValueError, match=told):
        Activation.fitted(name, sample)
