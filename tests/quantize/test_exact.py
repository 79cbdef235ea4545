"""Weights that another tool has quantized: their codes are carried over where the grid holds them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exporter.cli.main import main
from exporter.targets import TARGETS
from exporter.writers import WRITERS
from quantize.blocks import dequantize, to_blocks, to_rows
from quantize.checkpoint import open_checkpoint
from quantize.model_config import is_linear
from quantize.rounding.exact import exact
from quantize.rounding.rtn import rtn
from quantize.run.pipeline import quantize_checkpoint
from quantize.steps.fold import foldable
from quantize.template.convert import convert
from quantize.template.converter import find_converter
from quantize.types import Axis, Grid, QuantizedTensor
from runtime_checks.checks.verify import verify
from tests.any_model import make_model
from tests.cases import AXES, GRIDS, config_of, grid_id, weight_of
from tests.quantize.test_transforms import block_of
from tests.quantized_folders import quantized
from tests.tiny import make_tiny_model

SHAPES = [(64, 96), (256, 256)]
# whose scales are products, which are not looked for
PRODUCTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "hg2", "hg3")
LLAMA = TARGETS["llama.cpp"]


def on_grid(shape: tuple[int, int], grid: Grid, axis: Axis) -> QuantizedTensor:
    """Any codes; the least in each block is the lowest."""
    rows = to_rows(weight_of(shape), axis)
    codes = np.random.default_rng(2).integers(0, 2**grid.bits, rows.shape).astype(np.uint8)
    codes[:, :: grid.block_size] = 0
    return QuantizedTensor("w", codes, axis, grid, grid.fit(to_blocks(rows, grid.block_size)))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_what_lies_on_a_grid_is_found_bit_for_bit(grid, shape, axis):
    weight = dequantize(on_grid(shape, grid, axis))
    found = exact("w", weight, grid, axis)
    assert (found is None) == (grid.name in PRODUCTS)
    if found is not None:
        np.testing.assert_array_equal(dequantize(found), weight)
        assert {key: value.dtype for key, value in found.params.items()} == {
            key: value.dtype for key, value in on_grid(shape, grid, axis).params.items()
        }


@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_what_does_not_is_not(grid):
    weight = weight_of((64, 256))
    assert exact("w", weight, grid, Axis.PER_OC) is None
    moved = dequantize(on_grid((64, 256), grid, Axis.PER_OC))
    moved[10, 100] = np.nextafter(moved[10, 100], np.float32(1))  # in no row of those that are looked at first
    assert exact("w", moved, grid, Axis.PER_OC) is None


@pytest.mark.parametrize("method", ["rtn-oc", "gptq-oc", "gptq-ada"])
def test_codes_of_a_folder_are_carried_over(tmp_path, method, capsys):
    """Symmetric codes of 4 bits in groups of 32, as Q4_0 has them; GPTQ would move them."""
    model = make_model(tmp_path / "model", "qwen2", hidden_size=128, intermediate_size=256)
    meant = quantized(model, tmp_path / "packed", "compressed-tensors")
    convert(tmp_path / "packed", tmp_path / "model.gguf", find_converter(), pre="gpt-2")
    source = open_checkpoint(tmp_path / "model.gguf")
    config = config_of(method, grid="q4_0", token_weight="unit", calibration_tokens=1024)
    store = quantize_checkpoint(source, tmp_path / "store", config, LLAMA)
    linears = [record for record in store.records.values() if is_linear(record.name, record.shape)]
    assert {record.rounder for record in linears} == {"exact"} and len(linears) == len(meant) == 14
    assert {loss for record in linears for loss in record.loss.values()} <= {0.0}
    assert all(np.array_equal(store.weight(record.name).dense(), source.read(record.name)) for record in linears)
    assert main(["inspect", str(store.path)]) == 0
    assert not [check for check in verify(WRITERS["gguf"].write(store, tmp_path / "out.gguf"), source, store) if not check.ok]


def test_a_weight_on_its_grid_is_not_folded_away(tmp_path):
    block = block_of(open_checkpoint(make_tiny_model(tmp_path / "model", "llama")))
    name, (grid,) = next((name, plan.candidates.values()) for name, plan in block.plans.items())
    held = dequantize(rtn(name, block.tensors[name], grid, Axis.PER_OC))
    assert foldable(block) is not None
    assert foldable(replace(block, tensors={**block.tensors, name: held})) is None
