"""The kernel of MatMulAdaDim in onnxruntime: against numpy, and against the model's own body."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from quantize import Axis
from runtime_checks.reference.tiles import tile_codes, tile_scales, tile_zero_points
from tests import native
from tests.exporter.custom_op.cases import NODE, Case, Spec, make_case

# Of the largest output: float32 sums in another order, float16 results, and the kernel's float32 sums of rounded activations.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3}
CANCELLED = 1e-6  # what is left of q . a - z * sum(a) where it should be 0
# K, N, group: odd N, a ragged last group, K no multiple of the block, one group, a group for each half block
SHAPES = [(70, 51, 16), (96, 64, 32), (100, 36, 128), (64, 33, 16), (1, 1, 16), (288, 80, 64)]
ROWS = (1, 3, 6, 19)  # a row, a few, an interleaved panel, a panel and a few
KINDS = [("float32", "float16", False, False), ("float16", "float32", True, True), ("float32", "float32", True, False)]


@pytest.fixture(scope="module")
def library() -> Path:
    return native.library()


def session(model: bytes, library: Path | None, threads: int = 2) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options)


def run(case: Case, library: Path | None) -> np.ndarray:
    return session(case.model(function=library is None), library).run(None, case.inputs)[0]


def each(axis: Axis, bits: int, level: int, layout: int = 1) -> Iterator[tuple[Spec, Case]]:
    rng = np.random.default_rng(bits)
    for (K, N, group), (dtype, scales, symmetric, bias), rows in product(SHAPES, KINDS, ROWS):
        spec = Spec(K, N, bits, group, axis, level, layout, (rows,), dtype, scales, symmetric, bias)
        yield spec, make_case(spec, rng)


def rounding_bound(spec: Spec, case: Case) -> np.ndarray:
    """How far activations of 8 bits may take each output: half a step of its segment for each weight.

    A step is the largest magnitude of a segment / 127: of activations (PER_OC), or of activations times scales.
    """
    per_oc = spec.axis is Axis.PER_OC
    columns = spec.K if per_oc else spec.N
    groups = -(-columns // spec.group_size)
    codes = tile_codes(case.inputs["codes"], spec.bits)[: spec.N, : spec.K].astype(np.float64)
    scales = tile_scales(case.inputs["scales"], groups, per_oc).astype(np.float64)
    zeros = np.broadcast_to(tile_zero_points(case.inputs["zero_points"], spec.bits, groups, per_oc), scales.shape)
    group = np.arange(columns) // spec.group_size
    scales, zeros = (v[: spec.N, group] if per_oc else v[: spec.K, group].T for v in (scales, zeros.astype(np.float64)))
    levels = np.abs(codes - zeros)
    halves = per_oc and spec.group_size % 32 and groups > 1
    segment, bound = 16 if halves else 32, np.zeros(case.expected.shape)
    for start in range(0, spec.K, segment):
        part = slice(start, start + segment)
        x, factor = np.abs(case.inputs["A"][..., None, part].astype(np.float64)), np.abs(scales[:, part])
        largest = x.max(-1, keepdims=True) * factor if per_oc else (x * factor).max(-1, keepdims=True)
        bound += (largest * levels[:, part]).sum(-1)
    return bound / 127 / 2


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", Axis)
def test_kernel_and_numpy_agree(axis, bits, layout, library):
    for spec, case in each(axis, bits, 0, layout):
        y = run(case, library)
        assert y.dtype == spec.dtype
        tolerance = TOLERANCE[spec.dtype] * np.abs(case.expected).max()
        np.testing.assert_allclose(y, case.expected, rtol=0, atol=tolerance, err_msg=str(spec))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", Axis)
def test_level_4_rounds_activations_and_nothing_else(axis, bits, library):
    for spec, case in each(axis, bits, 4):
        errors = np.abs(run(case, library) - case.expected)
        slack = TOLERANCE[spec.dtype] * np.abs(case.expected).max() + CANCELLED
        assert (errors <= rounding_bound(spec, case) + slack).all(), spec
        assert spec.K == 1 or spec.dtype == "float16" or errors.max() > slack, f"{spec}: nothing was rounded"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", Axis)
def test_kernel_and_body_agree(axis, bits, library):
    for dtype, scales, symmetric, bias in KINDS[:2]:
        spec = Spec(70, 51, bits, 16, axis, 0, 1, (2, 3), dtype, scales, symmetric, bias)
        case = make_case(spec, np.random.default_rng(bits))
        native, portable = run(case, library), run(case, None)
        assert native.shape == portable.shape == (2, 3, 51)
        assert native.dtype == portable.dtype
        np.testing.assert_allclose(native, portable, rtol=0, atol=TOLERANCE[dtype] * np.abs(portable).max())


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("axis", Axis)
def test_a_row_with_nan_gives_nan_and_the_others_stay(axis, level, rows, library):
    case = make_case(Spec(96, 50, 4, 32, axis, level, rows=(rows,)), np.random.default_rng(0))
    whole = run(case, library)
    case.inputs["A"][0, 40] = np.nan
    broken = run(case, library)
    assert np.isnan(broken[0]).all()
    np.testing.assert_array_equal(broken[1:], whole[1:])


@pytest.mark.parametrize("axis", Axis)
def test_rows_of_zeros_and_of_one_value(axis, library):
    """A segment of zeros has no scale; the largest magnitude keeps its value."""
    case = make_case(Spec(96, 16, 4, 32, axis, 4, rows=(2,)), np.random.default_rng(0))
    exact = run(Case(case.attributes | {"accuracy_level": 0}, case.inputs | {"A": np.eye(2, 96, 33, dtype=np.float32)}), library)
    case.inputs["A"] = np.eye(2, 96, 33, dtype=np.float32) * np.float32([[0], [-1000]])
    y = run(case, library)
    assert not y[0].any()
    np.testing.assert_allclose(y[1], -1000 * exact[1], rtol=0, atol=1000 * TOLERANCE["float32"] * np.abs(exact[1]).max())


@pytest.mark.parametrize("level", [0, 4])
def test_many_threads_in_two_sessions_do_not_meet(level, library):
    specs = [Spec(288, 1000, 4, 32, axis, level, rows=(rows,)) for axis in Axis for rows in (1, 7)]
    cases = [make_case(spec, np.random.default_rng(index)) for index, spec in enumerate(specs)]
    sessions = [session(case.model(), library, threads=3) for case in cases[::2]]
    jobs = [(sessions[index // 2], case.inputs) for index, case in enumerate(cases)] * 8
    alone = [used.run(None, inputs)[0] for used, inputs in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: job[0].run(None, job[1])[0], jobs))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def small(**changed: int) -> Case:
    case = make_case(Spec(64, 48, 4, 32, Axis.PER_OC, bias=True), np.random.default_rng(0))
    return Case(case.attributes | changed, case.inputs)


# attributes that no session accepts, and what the error says
ATTRIBUTES = [
    ({"K": 0}, "K = 0 is not in 1 to 268435456"),
    ({"N": -5}, "N = -5 is not in 1 to 268435456"),
    ({"K": 1 << 40}, "K = 1099511627776 is not in 1"),
    ({"bits": 5}, "bits = 5 is not 2, 3, 4 or 8"),
    ({"bits": 1}, "bits = 1 is not in 2 to 8"),
    ({"group_size": 0}, "group_size = 0 is not in 1"),
    ({"group_size": 24}, "group_size = 24 is neither a multiple of 16 nor all of 64 channels"),
    ({"per_oc": 2}, "per_oc = 2 is not in 0 to 1"),
    ({"layout": 2}, "layout = 2 is not in 0 to 1"),
    ({"accuracy_level": 5}, "accuracy_level = 5 is not in 0 to 4"),
]


@pytest.mark.parametrize(("changed", "message"), ATTRIBUTES, ids=str)
def test_attributes_that_do_not_fit(changed, message, library):
    with pytest.raises(Exception, match=f"MatMulAdaDim node '{NODE}': {message}"):
        session(small(**changed).model(), library)


def test_a_missing_attribute(library):
    case = small()
    del case.attributes["K"]
    with pytest.raises(Exception, match=f"MatMulAdaDim node '{NODE}': has no integer attribute K"):
        session(case.model(), library)


# inputs of another shape or type, and what the error says
INPUTS = [
    ("codes", (3, 511), "uint8", r"codes is \[3, 511\], not \[3, 512\]"),
    ("codes", (512,), "uint8", r"codes is \[512\], not \[3, 512\]"),
    ("codes", (3, 0), "uint8", r"codes is \[3, 0\], not \[3, 512\]"),
    ("scales", (3, 31), "float16", r"scales is \[3, 31\], not \[3, 32\]"),
    ("scales", (3, 32), "int32", "scales have element type 6, not float16 or float32"),
    ("zero_points", (2, 64), "uint8", r"zero_points is \[2, 64\], not \[3, 64\]"),
    ("bias", (47,), "float32", r"bias is \[47\], not \[48\]"),
    ("A", (2, 63), "float32", r"A is \[2, 63\], its last dimension must be K = 64"),
    ("A", (), "float32", r"A is \[\], its last"),
    ("A", (0, 64), "float32", r"A is \[0, 64\], which holds no row"),
    ("A", (2, 0), "float32", r"A is \[2, 0\], its last"),
]


@pytest.mark.parametrize(("name", "shape", "dtype", "message"), INPUTS, ids=str)
def test_inputs_that_do_not_fit(name, shape, dtype, message, library):
    case = small()
    case.inputs[name] = np.zeros(shape, dtype)
    with pytest.raises(Exception, match=f"MatMulAdaDim node '{NODE}': {message}"):
        run(case, library)
