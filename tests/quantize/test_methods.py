"""Methods as tuples of steps: none loses to rounding to nearest, a new one is a row, a block's result follows from its task."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.targets import TARGETS
from quantize import methods, open_checkpoint, quantize_checkpoint
from quantize.blocks import dequantize
from quantize.checkpoint.row_order import RowOrders
from quantize.loss import output_loss
from quantize.methods import METHODS, ROUNDERS, Method
from quantize.rounding import Rounder
from quantize.run import header, job, task
from quantize.run.task import BlockTask, run_block
from quantize.steps.fold import ChangeBasis
from quantize.steps.round import Linear, Round
from quantize.types import Axis, Need, RowOrder, TensorPlan
from tests.cases import AXES, GRIDS, config_of, grid_id, stats_of, weight_of
from tests.tiny import make_tiny_model

ALIKE = 1e-3  # a search without importance and with an even one may end at different params


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.needs > Need.WEIGHTS])
def test_none_loses_to_rounding_to_nearest(method, grid, axis):
    weight, stats = weight_of((64, 512) if axis is Axis.PER_OC else (512, 64)), stats_of(512 if axis is Axis.PER_OC else 64)
    nearest = output_loss(weight, dequantize(ROUNDERS["rtn"]("w", weight, grid, axis)), stats)
    found = Linear("w", weight, stats, {axis: grid}, METHODS[method].rounder).rounded(axis)
    assert found.loss <= nearest * (1 + ALIKE)
    assert found.loss == pytest.approx(output_loss(weight, dequantize(found.tensor), stats))


def block_task() -> BlockTask:
    """Two linears that see the same input, by two methods, and a norm beside them."""
    grid, shape = GRIDS[2], (64, 96)
    plans = [TensorPlan(name, shape, dict.fromkeys(AXES, grid), method) for name, method in (("a", "gptq"), ("b", "rtn"))]
    tensors = {"norm": weight_of((1, 96))[0], "a": weight_of(shape), "b": weight_of(shape, 5)}
    return BlockTask((TensorPlan("norm", (96,)), *plans), tensors, dict.fromkeys("ab", stats_of(96)), (("a", "b"),), index=3)


def test_a_result_follows_from_its_task(tmp_path):
    source = open_checkpoint(make_tiny_model(tmp_path / "m"))
    kit = job.Kit(TARGETS["onnxruntime+adadim"], RowOrders(source.config, RowOrder.HF), ROUNDERS, 1.5)
    first, second = (run_block(block_task(), kit) for _ in range(2))
    assert [record.name for _, record in first.pieces] == ["norm", "a", "b"]
    assert [record.rounder for _, record in first.pieces] == ["", "gptq", "rtn"]
    assert first.reports == second.reports == ({"index": 3, "taken_back": []},)
    for (part, record), (twin, again) in zip(first.pieces[1:], second.pieces[1:], strict=True):
        assert record == again and set(record.loss) == {"per_oc", "per_ic"}
        tensor, other = part.weight, twin.weight
        assert np.array_equal(tensor.codes, other.codes)


@pytest.fixture
def scaled(monkeypatch):
    """A method of three steps in METHODS."""
    steps = (ChangeBasis("norm-scales"), ChangeBasis("ffn-scales"), Round(Rounder("search", Need.IMPORTANCE)))
    method = Method("scaled", "channels scaled, then rounded to nearest", "a paper", steps)
    for table in (methods.METHODS, header.METHODS, job.METHODS, task.METHODS):
        monkeypatch.setitem(table, "scaled", method)
    monkeypatch.setitem(methods.ROUNDERS, "scaled", method.rounder)
    monkeypatch.setattr(methods, "WORDS", (*methods.WORDS, *(f"scaled-{axes}" for axes in methods.AXES)))


@pytest.mark.parametrize("target", ["llama.cpp", "onnxruntime"])
def test_a_new_method_is_a_row(scaled, tmp_path, target):
    """Planned, run over a text because its steps need one, its folds in the header for ``verify``."""
    source = open_checkpoint(make_tiny_model(tmp_path / "m"))
    config = config_of("scaled-ada", calibration_tokens=1024)
    store = quantize_checkpoint(source, tmp_path / "s", config, TARGETS[target])
    assert store.header["calibration"]["tokens"] == 1024
    assert list(store.header["transforms"]) == ["norm-scales", "ffn-scales"]
    assert "1" in "".join(store.header["transforms"].values())
    assert {record.rounder for record in store.records.values() if "layers" in record.name and record.grid} == {"search"}
