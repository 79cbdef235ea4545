"""What each target holds, refuses and costs."""

from __future__ import annotations

import pytest

from exporter.targets import GGUF_TARGETS, ONNX_TARGETS, TARGETS
from quantize.errors import ConfigError
from quantize.grids import GRIDS, make_grid
from quantize.types import Axis, RowOrder

Q4_0 = make_grid("q4_0", 4, 32)
INT4 = make_grid("int", 4, 64)
REFUSALS = [
    ("llama.cpp", Q4_0, Axis.PER_OC, (48, 96), None),
    ("llama.cpp", Q4_0, Axis.PER_IC, (96, 96), "cannot hold per-IC groups"),
    ("llama.cpp", Q4_0, Axis.PER_OC, (48, 100), "IC = 100, which is no multiple of q4_0's block of 32; 96 or 128 would fit"),
    ("llama.cpp", INT4, Axis.PER_OC, (64, 64), "stores ggml blocks, not the int grid"),
    ("gguf-adadim", Q4_0, Axis.PER_IC, (96, 50), None),
    ("gguf-adadim", Q4_0, Axis.PER_IC, (50, 96), "OC = 50, which is no multiple of q4_0's block of 32; 32 or 64 would fit"),
    ("onnxruntime", INT4, Axis.PER_OC, (50, 70), None),
    ("onnxruntime", INT4, Axis.PER_IC, (50, 70), None),
    ("onnxruntime", Q4_0, Axis.PER_OC, (64, 64), "stores the int grid, not ggml's q4_0"),
    ("onnxruntime+adadim", INT4, Axis.PER_IC, (50, 70), None),
]


@pytest.mark.parametrize(("name", "grid", "axis", "shape", "reason"), REFUSALS)
def test_refuses(name, grid, axis, shape, reason):
    target = TARGETS[name]
    answer = target.lacks(grid, axis) or target.refuses(grid, axis, shape)
    assert answer is None if reason is None else reason in answer


def test_names_and_row_orders():
    assert all(TARGETS[name].name == name for name in TARGETS)
    assert {name for name in TARGETS if TARGETS[name].row_order is RowOrder.GGML} == set(GGUF_TARGETS)
    assert set(GGUF_TARGETS) | set(ONNX_TARGETS) == set(TARGETS)


@pytest.mark.parametrize("name", GGUF_TARGETS)
def test_default_grids_of_gguf(name):
    target = TARGETS[name]
    assert [target.grid_name(bits) for bits in (2, 3, 4, 5, 8)] == ["q2_k", "q3_k", "q4_0", "q5_0", "q8_0"]
    with pytest.raises(ConfigError, match=r"bits=6: target .* has no such block format; it has 2 \(q2_k\), 3"):
        target.grid_name(6)


@pytest.mark.parametrize(
    ("name", "cols", "smaller"),
    [
        ("q2_k", 576, "iq4_nl"),
        ("q4_k", 576, "q5_0"),
        ("q5_k", 576, "q5_1"),
        ("q6_k", 576, "q8_0"),
        ("q6_k", 100, None),
        ("iq3_s", 576, "iq4_nl"),
    ],
)
def test_super_blocks_fall_back_to_blocks_of_32(name, cols, smaller):
    grid, target = GRIDS[name], TARGETS["llama.cpp"]
    reason = target.refuses(grid, Axis.PER_OC, (64, cols))
    assert reason is not None and f"IC = {cols}, which is no multiple of {name}'s block of 256" in reason
    found = target.fallback(grid, Axis.PER_OC, (64, cols))
    assert (found and found.name) == smaller


@pytest.mark.parametrize("name", ONNX_TARGETS)
def test_default_grids_of_onnx(name):
    assert {TARGETS[name].grid_name(bits) for bits in (2, 3, 4, 8)} == {"int"}


def test_only_the_split_form_makes_per_ic_dear():
    shape = (576, 576)
    stock, custom = TARGETS["onnxruntime"], TARGETS["onnxruntime+adadim"]
    assert stock.decode_cost(INT4, Axis.PER_IC, shape) > 3 * stock.decode_cost(INT4, Axis.PER_OC, shape)
    assert custom.decode_cost(INT4, Axis.PER_IC, shape) == pytest.approx(custom.decode_cost(INT4, Axis.PER_OC, shape), rel=0.02)


def test_smaller_groups_make_the_split_form_dearer():
    cost = TARGETS["onnxruntime"].decode_cost
    costs = [cost(make_grid("int", 4, group), Axis.PER_IC, (576, 576)) for group in (32, 64, 128)]
    assert costs == sorted(costs, reverse=True)
