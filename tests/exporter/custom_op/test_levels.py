"""The kernel of MatMulLevels in onnxruntime, against numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantize import Axis
from tests import native
from tests.exporter.custom_op.cases import NODE, Case, assert_close
from tests.exporter.custom_op.levels_cases import KINDS, OP, Levels, case_of, levels_grid, make_levels
from tests.exporter.custom_op.test_kernel import run, session

ROWS = (1, 3, 8, 19)  # a row, a few, an interleaved panel, a panel and a few


@pytest.fixture(scope="module")
def library():
    return native.library()


@pytest.mark.parametrize(("dims", "bits"), KINDS)
def test_kernel_and_numpy_agree(dims, bits, library):
    rng = np.random.default_rng(bits)
    for spec in levels_grid():
        if (spec.dims, spec.bits) == (dims, bits):
            for rows in ROWS:
                other = replace(spec, rows=(rows,))
                case = make_levels(other, rng)
                y = run(case, library)
                assert y.dtype == other.dtype
                assert_close(y, case.expected, other.tolerance, other)


def whole(spec: Levels, rng: np.random.Generator) -> Case:
    """Numbers that rounding to 8 bits keeps: integers, the largest of each segment 127, and scales of 1."""
    rows, columns = (spec.N, spec.K) if spec.axis is Axis.PER_OC else (spec.K, spec.N)
    codes = rng.integers(0, 1 << spec.bits, (rows, columns // spec.dims), np.uint8)
    levels = rng.choice([-spec.most, spec.most], (spec.dims, 1 << spec.bits)).astype(np.int8)
    levels[:, ::3] = rng.integers(-spec.most, spec.most + 1, levels[:, ::3].shape)
    a = rng.choice([-127, 127], (*spec.rows, spec.K)).astype(np.float32)
    a[..., 5::32] = 60
    scales = np.ones((rows, -(-columns // spec.group_size)), np.float16)
    return case_of(spec, a, (codes, scales, levels), np.zeros(spec.N, np.float32))


SINGLE_AND_PAIRS = [(1, bits, axis) for bits in (2, 3, 4) for axis in Axis] + [(2, bits, Axis.PER_OC) for bits in (4, 6)]


@pytest.mark.parametrize("most", [63, 64, 127])
@pytest.mark.parametrize(("dims", "bits", "axis"), SINGLE_AND_PAIRS)
def test_integer_products_are_exact(dims, bits, axis, most, library):
    """Sums of the largest levels and activations, in bytes, words or lanes, overflow nowhere; 64 needs the wide offset."""
    for rows in ROWS:
        spec = Levels(160, 50, dims, bits, 64, axis, 4, (rows,), most=most)
        case = whole(spec, np.random.default_rng(bits))
        np.testing.assert_array_equal(run(case, library), case.expected, err_msg=str(spec))


def test_each_code_finds_its_level_and_each_pair_its_channels(library):
    """A row of A with a single 1 picks one weight out."""
    for dims, bits in KINDS:
        count = 1 << bits
        levels = (np.arange(dims * count).reshape(dims, count) - 60).astype(np.int8)
        codes = np.arange(16 * 64 // dims).reshape(16, -1).astype(np.uint8) % count
        spec = Levels(64, 16, dims, bits, 64, rows=(64,))
        scales, bias = np.ones((16, 1), np.float16), np.zeros(16, np.float32)
        y = run(case_of(spec, np.eye(64, dtype=np.float32), (codes, scales, levels), bias), library)
        expected = [[levels[k % dims, codes[n, k // dims]] for n in range(16)] for k in range(64)]
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("level", [0, 4])
def test_a_row_with_nan_gives_nan_and_the_others_stay(level, library):
    case = make_levels(Levels(96, 50, 2, 6, 32, accuracy_level=level, rows=(8,)), np.random.default_rng(0))
    whole = run(case, library)
    case.inputs["A"][0, 40] = np.nan
    broken = run(case, library)
    assert np.isnan(broken[0]).all()
    np.testing.assert_array_equal(broken[1:], whole[1:])


def small(dims: int = 1, bits: int = 4, changed: dict[str, int] | None = None) -> Case:
    case = make_levels(Levels(64, 48, dims, bits, 32, bias=True), np.random.default_rng(0))
    return replace(case, attributes=case.attributes | (changed or {}))


ATTRIBUTES = [
    ({"K": 0}, "K = 0 is not in 1 to 268435456"),
    ({"bits": 5}, "bits = 5 is not 2, 3, 4 or 6"),
    ({"bits": 8}, "bits = 8 is not 2, 3, 4 or 6"),
    ({"group_size": 48}, "group_size = 48 is neither a multiple of 32 nor all of 64 channels"),
    ({"layout": 0}, "layout = 0 is not 1"),
    ({"accuracy_level": 5}, "accuracy_level = 5 is not in 0 to 4"),
]


@pytest.mark.parametrize(("changed", "message"), ATTRIBUTES, ids=str)
def test_attributes_that_do_not_fit(changed, message, library):
    with pytest.raises(Exception, match=f"{OP} node '{NODE}': {message}"):
        session(small(changed=changed).model(), library)


INPUTS = [
    (small(), "levels", (1, 8), "int8", r"levels is \[1, 8\], not \[1, 16\]"),
    (small(), "levels", (3, 16), "int8", r"levels is \[3, 16\], not \[1, 16\]"),
    (small(), "levels", (16,), "int8", r"levels is \[16\], not \[1, 16\]"),
    (small(), "levels", (2, 16), "int8", r"codes is \[3, 512\], not \[3, 256\]"),
    (small(2, 6), "levels", (1, 64), "int8", "bits = 6 is for pairs, but levels are for single channels"),
    (small(1, 3), "levels", (2, 8), "int8", "bits = 3 is not 4 or 6, as levels of pairs need"),
    (small(2, 4, {"per_oc": 0}), "A", (2, 64), "float32", "per_oc = 0 goes with levels of single channels"),
    (small(2, 4, {"K": 63}), "A", (2, 63), "float32", "K = 63 is odd, which pairs do not fill"),
    (small(), "codes", (3, 511), "uint8", r"codes is \[3, 511\], not \[3, 512\]"),
    (small(), "scales", (3, 31), "float16", r"scales is \[3, 31\], not \[3, 32\]"),
    (small(), "scales", (3, 32), "int32", "scales have element type 6, not float16 or float32"),
    (small(), "bias", (47,), "float32", r"bias is \[47\], not \[48\]"),
    (small(), "A", (2, 63), "float32", r"A is \[2, 63\], its last dimension must be K = 64"),
    (small(), "A", (0, 64), "float32", r"A is \[0, 64\], which holds no row"),
]


@pytest.mark.parametrize(("case", "name", "shape", "dtype", "message"), INPUTS, ids=[row[4] for row in INPUTS])
def test_inputs_that_do_not_fit(case, name, shape, dtype, message, library):
    with pytest.raises(Exception, match=f"{OP} node '{NODE}': {message}"):
        run(replace(case, inputs=case.inputs | {name: np.zeros(shape, dtype)}), library)
