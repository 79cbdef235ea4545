"""CMPQ's levels: a table for each part where the target has tables, in the plan, in the store and in the file."""

from __future__ import annotations

import pytest

from exporter.onnx.file import onnx_size, write_onnx
from exporter.targets import TARGETS
from quantize import QuantizeConfig, open_checkpoint, quantize_checkpoint
from quantize.config import DataSpec, GridSpec
from quantize.grids.int_affine import IntAffine
from quantize.grids.levels import Levels, own_levels
from quantize.planning.plan import ModelPlan, build_plan
from quantize.run.pipeline import planned_store
from quantize.types import Axis
from runtime_checks.checks.verify import verify
from tests.tiny import make_tiny_model

ADADIM = TARGETS["onnxruntime+adadim"]
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("levels") / "m", layers=2, ffn=96))


def config_of(bits=2.6, **grid):
    return QuantizeConfig("cmpq", GridSpec(bits=bits, **grid), data=DataSpec(tokens=512))


def linears(source, config, target):
    return [plan for plan in build_plan(source.specs, config, target, source.read) if plan.candidates and plan.method == "cmpq"]


def test_each_part_has_a_table_of_its_width_and_a_scale_a_row(source):
    for plan in linears(source, config_of(), ADADIM):
        parts = [part for part in plan.parts if part.grid is not None]
        assert [part.grid.bits for part in parts] == [2, 3]
        for part in parts:
            assert part.grid == own_levels(source.read(plan.name), part.grid.bits, part.grid.group_size)
            assert part.count <= part.grid.group_size < 2 * max(part.count, 32)
        assert plan.candidates == {Axis.PER_OC: parts[0].grid}
    for plan in linears(source, config_of(bits=3), ADADIM):  # where one part is all
        assert plan.candidates[Axis.PER_OC].name == "levels" and not plan.parts


@pytest.mark.parametrize(
    ("target", "grid"),
    [
        ("onnxruntime", {}),
        ("onnxruntime+adadim", {"group_size": 32}),
        ("onnxruntime+adadim", {"symmetric": True}),
        ("onnxruntime+adadim", {"scale_dtype": "float32"}),
    ],
)
def test_ints_stay_where_there_are_no_tables_and_where_something_is_said_of_them(source, target, grid):
    for plan in linears(source, config_of(**grid), TARGETS[target]):
        assert all(isinstance(part.grid, IntAffine) for part in plan.parts if part.grid is not None)
        assert all(isinstance(own, IntAffine) for own in plan.candidates.values())


def test_a_file_of_them_is_as_planned_and_verified(source, tmp_path):
    store = quantize_checkpoint(source, tmp_path / "store", config_of(), ADADIM)
    records = [record for record in store.records.values() if isinstance(record.grid, Levels)]
    assert len(records) == 2 * 7 * 2 and {record.grid.bits for record in records} == {2, 3}
    assert len({record.grid.levels for record in records}) == len(records)
    folder = write_onnx(store, tmp_path / "onnx")
    plan = ModelPlan(config_of(), ADADIM, build_plan(source.specs, config_of(), ADADIM, source.read))
    with planned_store(source, plan) as planned:
        assert onnx_size(planned) == sum(item.stat().st_size for item in folder.glob("model.onnx*"))
    assert [check for check in verify(folder, source, store) if not check.ok] == []
