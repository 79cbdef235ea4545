"""The kernel of RotateAdaDim in onnxruntime, against numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests import native
from tests.exporter.custom_op.cases import NODE, Case, assert_close
from tests.exporter.custom_op.rotate_cases import OP, Turn, make_turn, sylvester, turn_of, turns
from tests.exporter.custom_op.test_kernel import session


@pytest.fixture(scope="module")
def library():
    return native.library()


def run(case: Case, library) -> np.ndarray:
    return session(case.model(), library).run(None, case.fed)[0]


@pytest.mark.parametrize("spec", turns(), ids=str)
def test_kernel_and_numpy_agree(spec, library):
    case = make_turn(spec, np.random.default_rng(0))
    y = run(case, library)
    assert y.dtype == spec.dtype
    assert_close(y, case.expected, spec.tolerance, spec)


def test_constants_and_inputs_give_the_same(library):
    """The factors are taken apart when the session is made, or at each call."""
    case = make_turn(Turn((2, 12), (4, 12), 2, (5,)), np.random.default_rng(0))
    np.testing.assert_array_equal(run(case, library), run(replace(case, constants=()), library))


def test_one_entry_off_sylvester_is_seen(library):
    """A factor is taken apart only as far as it is what it looks like."""
    rng = np.random.default_rng(0)
    for side in ("left", "right"):
        for row, column in ((0, 0), (0, 40), (40, 0), (63, 63), (31, 31), (5, 9)):
            factors = {"left": sylvester(64), "right": sylvester(64)}
            factors[side][row, column] *= -1
            case = turn_of(rng.normal(size=(1, 4096)).astype(np.float32), np.ones(4096, np.int8), **factors, constant=True)
            assert_close(run(case, library), case.expected, 1e-5, (side, row, column))


def test_a_unit_row_gives_a_column(library):
    """Left and right, rows and columns, and the signs keep their places."""
    rng = np.random.default_rng(1)
    case = make_turn(Turn((1, 3), (1, 5)), rng)
    eye = turn_of(np.eye(15, dtype=np.float32), *(case.inputs[name] for name in ("signs", "left", "right")), constant=True)
    matrix = np.kron(case.inputs["left"], case.inputs["right"]) * case.inputs["signs"]
    np.testing.assert_allclose(run(eye, library), matrix.T / np.sqrt(15), rtol=1e-6)


def wrong(**changed: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "X": np.ones((2, 24), np.float32),
        "signs": np.ones(24, np.int8),
        "left": sylvester(2),
        "right": sylvester(4),
    } | changed


INPUTS = [
    (wrong(left=np.ones((2, 3), np.int8)), r"left is \[2, 3\], no square matrix"),
    (wrong(right=np.ones((0, 0), np.int8)), r"right is \[0, 0\], no square matrix"),
    (wrong(right=np.ones(4, np.int8)), r"right is \[4\], no square matrix"),
    (wrong(left=np.zeros((2, 2), np.int8)), r"left holds 0 at place 0, not \+1 or -1"),
    (wrong(right=sylvester(4) * np.int8(2)), r"right holds 2 at place 0, not \+1 or -1"),
    (wrong(signs=np.arange(24, dtype=np.int8)), r"signs holds 0 at place 0, not \+1 or -1"),
    (wrong(signs=np.ones((1, 24), np.int8)), r"signs is \[1, 24\], no vector"),
    (wrong(signs=np.ones(0, np.int8)), r"signs is \[0\], no vector"),
    (wrong(signs=np.ones(20, np.int8)), r"signs is \[20\], no multiple of left times right, 2 x 4"),
    (wrong(X=np.ones((2, 23), np.float32)), r"X is \[2, 23\], its last dimension must be K = 24"),
    (wrong(X=np.ones((0, 24), np.float32)), r"X is \[0, 24\], which holds no row"),
    (wrong(X=np.ones((), np.float32)), r"X is \[\], its last dimension"),
]


@pytest.mark.parametrize("constants", [(), ("signs", "left", "right")], ids=["inputs", "constants"])
@pytest.mark.parametrize(("inputs", "message"), INPUTS, ids=[row[1] for row in INPUTS])
def test_inputs_that_do_not_fit(inputs, message, constants, library):
    with pytest.raises(Exception, match=f"{OP} node '{NODE}': {message}"):
        run(Case({}, inputs, op=OP, constants=constants), library)
