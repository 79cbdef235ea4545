"""The kernel on processors that are not here, in qemu: arm64 inside a real arm64 onnxruntime, and older x86 ones."""

from __future__ import annotations

import numpy as np
import pytest

from tests.exporter.custom_op.cases import FLOAT, HALF, Spec, assert_close, grid, make_case, tolerance
from tests.exporter.custom_op.driver import HOST, emulated_arm64, emulated_x86
from tests.exporter.custom_op.levels_cases import Levels, levels_grid, make_levels
from tests.exporter.custom_op.rotate_cases import make_turn, turns

SPECS = grid() + grid(layout=0)[::3]
PROCESSORS = {
    "arm64 with i8mm": emulated_arm64("max"),
    "arm64 with dotprod": emulated_arm64("neoverse-n1"),
    "arm64 with neither": emulated_arm64("cortex-a57"),
    "x86 with AVX2": emulated_x86("Haswell"),
    "x86 with SSE4": emulated_x86("Nehalem"),
}


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(0)
    return [make_case(spec, rng) for spec in SPECS]


@pytest.fixture(scope="module")
def here(cases, tmp_path_factory):
    return HOST(cases, tmp_path_factory.mktemp("here"))


def same(spec: Spec | Levels) -> float:
    """Activations are rounded alike everywhere, only sums differ in their order."""
    return HALF if spec.dtype == "float16" else FLOAT


@pytest.mark.parametrize("processor", PROCESSORS)
def test_every_processor_gives_the_product(processor, cases, here, tmp_path):
    results = PROCESSORS[processor](cases, tmp_path)
    for spec, case, actual, reference in zip(SPECS, cases, results, here, strict=True):
        assert_close(actual, case.expected, tolerance(spec), spec)
        assert_close(actual, reference.astype(np.float64), same(spec), spec)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_levels_and_turns(processor, tmp_path):
    """Turns have one order of sums on all processors."""
    rng = np.random.default_rng(0)
    looked, turned = levels_grid(), turns()
    cases = [make_levels(spec, rng) for spec in looked] + [make_turn(spec, rng) for spec in turned]
    (tmp_path / "here").mkdir()
    results = PROCESSORS[processor](cases, tmp_path)
    for spec, case, actual, reference in zip(looked + turned, cases, results, HOST(cases, tmp_path / "here"), strict=True):
        assert_close(actual, case.expected, spec.tolerance, spec)
        assert_close(actual, reference.astype(np.float64), same(spec) if spec in looked else 0, spec)


def test_the_portable_body_on_arm64(cases, tmp_path):
    chosen = [index for index, spec in enumerate(SPECS) if spec.layout == 1 and spec.rows][::3]
    results = emulated_arm64("max")([cases[index] for index in chosen], tmp_path, function=True)
    for index, actual in zip(chosen, results, strict=True):
        assert_close(actual, cases[index].expected, same(SPECS[index]), SPECS[index])
