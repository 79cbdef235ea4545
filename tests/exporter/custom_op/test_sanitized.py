"""The kernel under the sanitizers for addresses, undefined behaviour and threads, linked into a program as on iOS.

Every input is a buffer of its very size, so a read beyond it ends the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from quantize import Axis
from tests.exporter.custom_op.cases import NODE, Case, Spec, assert_close, grid, make_case, tolerance
from tests.exporter.custom_op.driver import SANITIZED, THREADS_SANITIZED
from tests.exporter.custom_op.levels_cases import KINDS, Levels, levels_grid, make_levels
from tests.exporter.custom_op.rotate_cases import Turn, make_turn, turns

HUGE = 2**62


@pytest.mark.parametrize("layout", [0, 1])
def test_the_grid(layout, tmp_path):
    rng = np.random.default_rng(layout)
    specs = grid(layout)
    cases = [make_case(spec, rng) for spec in specs]
    for spec, case, actual in zip(specs, cases, SANITIZED(cases, tmp_path), strict=True):
        assert_close(actual, case.expected, tolerance(spec), spec)


def test_the_grids_of_levels_and_turns(tmp_path):
    rng = np.random.default_rng(0)
    looked, turned = levels_grid(), turns()
    cases = [make_levels(spec, rng) for spec in looked] + [make_turn(spec, rng) for spec in turned]
    for spec, case, actual in zip(looked + turned, cases, SANITIZED(cases, tmp_path), strict=True):
        assert_close(actual, case.expected, spec.tolerance, spec)


def random_spec(rng: np.random.Generator) -> Spec:
    axis, layout = (Axis.PER_OC, Axis.PER_IC)[rng.integers(2)], int(rng.integers(2))
    k, n = (int(side) for side in rng.integers(1, 200, 2))
    columns = k if axis is Axis.PER_OC else n
    fitting = [*range(16, columns, 16), columns, columns + 5] if layout else range(1, columns + 9)
    return Spec(
        k,
        n,
        int(rng.choice([2, 3, 4, 8])),
        int(rng.choice(fitting)),
        axis,
        accuracy_level=int(rng.integers(5)),
        layout=layout,
        rows=tuple(int(size) for size in rng.integers(1, 6, rng.integers(4))),
        dtype=str(rng.choice(["float32", "float16"])),
        scales=str(rng.choice(["float32", "float16"])),
        symmetric=bool(rng.integers(2)),
        bias=bool(rng.integers(2)),
    )


def random_levels(rng: np.random.Generator) -> Levels:
    dims, bits = KINDS[rng.integers(len(KINDS))]
    axis = (Axis.PER_OC, Axis.PER_IC)[rng.integers(2)] if dims == 1 else Axis.PER_OC
    k, n = int(rng.integers(1, 100)) * 2, int(rng.integers(1, 200))
    columns = k if axis is Axis.PER_OC else n
    return Levels(
        k,
        n,
        dims,
        bits,
        int(rng.choice([*range(32, columns, 32), columns, columns + 5])),
        axis,
        accuracy_level=int(rng.integers(5)),
        rows=tuple(int(size) for size in rng.integers(1, 6, rng.integers(4))),
        dtype=str(rng.choice(["float32", "float16"])),
        scales=str(rng.choice(["float32", "float16"])),
        bias=bool(rng.integers(2)),
        most=int(rng.choice([20, 63, 64, 127])),
    )


def random_turn(rng: np.random.Generator) -> Turn:
    left, right = ((1 << int(rng.integers(4)), int(rng.integers(1, 20))) for _ in range(2))
    rows = tuple(int(size) for size in rng.integers(1, 6, rng.integers(4)))
    return Turn(left, right, int(rng.integers(1, 4)), rows, str(rng.choice(["float32", "float16"])), bool(rng.integers(2)))


def test_levels_and_turns_at_random(tmp_path):
    rng = np.random.default_rng(6)
    specs = [random_levels(rng) for _ in range(200)] + [random_turn(rng) for _ in range(100)]
    cases = [make_levels(spec, rng) if isinstance(spec, Levels) else make_turn(spec, rng) for spec in specs]
    for spec, case, actual in zip(specs, cases, SANITIZED(cases, tmp_path), strict=True):
        assert_close(actual, case.expected, spec.tolerance, spec)


def test_shapes_at_random(tmp_path):
    rng = np.random.default_rng(1)
    specs = [random_spec(rng) for _ in range(200)]
    cases = [make_case(spec, rng) for spec in specs]
    for spec, case, actual in zip(specs, cases, SANITIZED(cases, tmp_path), strict=True):
        assert_close(actual, case.expected, tolerance(spec), spec)


def test_many_threads_in_sessions_at_once(tmp_path):
    """Under ThreadSanitizer, which ends the driver with an error when it has seen a race."""
    specs = [
        Spec(512, 1040, 4, 32, axis, level, layout, (rows,), dtype)
        for axis in Axis
        for level, layout in ((0, 0), (0, 1), (4, 1))
        for rows, dtype in ((1, "float32"), (19, "float16"))
    ]
    cases = [make_case(spec, np.random.default_rng(0)) for spec in specs]
    others = [Levels(512, 1040, 2, 6, 32, rows=(rows,), accuracy_level=level) for rows in (1, 19) for level in (0, 4)]
    others += [Turn((4, 12), (16, 1), rows=(rows,), constant=constant) for rows in (1, 90) for constant in (True, False)]
    rng = np.random.default_rng(0)
    cases += [make_levels(spec, rng) if isinstance(spec, Levels) else make_turn(spec, rng) for spec in others]
    tolerances = [tolerance(spec) for spec in specs] + [spec.tolerance for spec in others]
    what = [*specs, *others]
    for spec, most, case, actual in zip(what, tolerances, cases, THREADS_SANITIZED(cases, tmp_path), strict=True):
        assert_close(actual, case.expected, most, spec)


def wrong_shapes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield from ((), shape[:-1], (*shape, 1), (1, *shape))
    for axis, size in enumerate(shape):
        yield from ((*shape[:axis], wrong, *shape[axis + 1 :]) for wrong in {0, max(size - 1, 0), size + 1, 2 * size} - {size})


def other_values(case: Case, name: str) -> set[int]:
    """Of an attribute, none of which may pass: too small, too large, and near misses."""
    value = case.attributes[name]
    wrong = {-1, -HUGE, HUGE, 0, value - 1, value + 1, 2 * value} - {value, 2 * HUGE}
    if name == "accuracy_level":
        return wrong - {0, 1, 3}
    if name == "group_size" and case.attributes["layout"] == 0:  # another size with as many groups is another right node
        columns = case.attributes["K" if case.attributes["per_oc"] else "N"]
        return {other for other in wrong if other < 1 or -(-columns // other) != -(-columns // value)}
    return wrong


def damaged(case: Case) -> Iterator[tuple[str, Case]]:
    """One thing wrong at a time."""
    for name in case.attributes:
        yield from (
            (f"{name} = {other}", replace(case, attributes=case.attributes | {name: other})) for other in other_values(case, name)
        )
        yield f"no {name}", replace(case, attributes={key: held for key, held in case.attributes.items() if key != name})
    for name, value in case.inputs.items():
        for shape in wrong_shapes(value.shape):
            other = np.resize(value, int(np.prod(shape))).reshape(shape)
            if name not in ("A", "X") or shape[-1:] != value.shape[-1:] or 0 in shape:
                yield f"{name} {shape}", replace(case, inputs=case.inputs | {name: other})
        yield f"{name} of float64", replace(case, inputs=case.inputs | {name: value.astype(np.float64)})


@pytest.mark.parametrize("axis", Axis)
@pytest.mark.parametrize("layout", [0, 1])
def test_bad_nodes_are_refused_by_name(layout, axis, tmp_path):
    spec = Spec(70, 50, 4, 16, axis, layout=layout, rows=(2,), bias=True, accuracy_level=4)
    what, cases = zip(*damaged(make_case(spec, np.random.default_rng(2))), strict=True)
    for name, answer in zip(what, SANITIZED(cases, tmp_path), strict=True):
        assert isinstance(answer, str), name
        assert NODE in answer, f"{name}: {answer}"


def test_bad_levels_and_turns_are_refused_by_name(tmp_path):
    rng = np.random.default_rng(2)
    specs = [Levels(70, 50, dims, bits, 32, rows=(2,), bias=True, accuracy_level=4) for dims, bits in KINDS]
    whole = [make_levels(spec, rng) for spec in specs]
    whole += [make_turn(Turn((2, 3), (4, 5), constant=constant), rng) for constant in (True, False)]
    what, cases = zip(*(row for case in whole for row in damaged(case)), strict=True)
    for name, answer in zip(what, SANITIZED(cases, tmp_path), strict=True):
        assert isinstance(answer, str), name
        assert NODE in answer, f"{name}: {answer}"


def scrambled(case: Case, rng: np.random.Generator) -> Case:
    """Up to three things changed at once, for better or worse."""
    attributes, inputs = dict(case.attributes), dict(case.inputs)
    for _ in range(rng.integers(1, 4)):
        if rng.integers(2) and attributes:
            name = str(rng.choice(list(attributes)))
            near = attributes[name] + int(rng.integers(-2, 3))
            attributes[name] = int(rng.choice([-HUGE, -1, 0, 1, 2, 3, 4, 8, 16, 31, 32, 33, 64, 2**28, HUGE, near]))
        else:
            name = str(rng.choice(list(inputs)))
            shapes = list(wrong_shapes(inputs[name].shape))
            shape = shapes[rng.integers(len(shapes))]
            inputs[name] = np.resize(inputs[name], int(np.prod(shape))).reshape(shape)
    return replace(case, attributes=attributes, inputs=inputs)


def test_levels_and_turns_at_random_never_crash(tmp_path):
    rng = np.random.default_rng(7)
    whole = [make_levels(random_levels(rng), rng) for _ in range(200)] + [make_turn(random_turn(rng), rng) for _ in range(100)]
    answers = SANITIZED([scrambled(case, rng) for case in whole], tmp_path)
    refused = [answer for answer in answers if isinstance(answer, str)]
    assert len(refused) < len(answers)
    assert all(NODE in answer for answer in refused)


def test_attributes_and_shapes_at_random_never_crash(tmp_path):
    rng = np.random.default_rng(3)
    cases = [scrambled(make_case(random_spec(rng), rng), rng) for _ in range(400)]
    answers = SANITIZED(cases, tmp_path)
    refused = [answer for answer in answers if isinstance(answer, str)]
    assert len(refused) < len(answers)  # some changes are harmless
    assert all(NODE in answer for answer in refused)


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("axis", Axis)
def test_a_nan_stays_in_its_row(axis, level, tmp_path):
    spec = Spec(70, 50, 4, 16, axis, rows=(20,), accuracy_level=level)
    case = make_case(spec, np.random.default_rng(4))
    case.inputs["A"][[0, 7, 19], [0, 69, 33]] = np.nan
    (actual,) = SANITIZED([case], tmp_path)
    rows = np.delete(np.arange(20), [0, 7, 19])
    assert np.isnan(actual[[0, 7, 19]]).all()
    assert_close(actual[rows], case.expected[rows], tolerance(spec), spec)


@pytest.mark.parametrize("value", [np.inf, 3e38, 1e-42, 0.0])
def test_extreme_activations_are_no_undefined_behaviour(value, tmp_path):
    specs = [replace(spec, dtype="float32", rows=(18,)) for spec in grid()[::5]]
    cases = [make_case(spec, np.random.default_rng(5)) for spec in specs]
    for case in cases:
        case.inputs["A"][::2] = value
    assert all(isinstance(answer, np.ndarray) for answer in SANITIZED(cases, tmp_path))
