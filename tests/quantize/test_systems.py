"""Systems by name: a step that plans is overridden by what says its grid, contradictions are refused before any data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from exporter.cli.main import main
from exporter.targets import TARGETS
from exporter.writers import writer_of
from quantize import methods, open_checkpoint, quantize_checkpoint
from quantize.grids import make_grid
from quantize.methods import METHODS, Method
from quantize.methods.finequant import METHOD
from quantize.rounding import NEAREST, Rounder
from quantize.steps.columns import FloatColumns
from quantize.steps.group_size import ChooseGroups, halved, merged
from quantize.steps.round import Round
from quantize.types import Axis, Need, TensorPlan
from runtime_checks.checks.verify import verify
from tests.cases import config_of, weight_of
from tests.tiny import make_tiny_model

ALPHAS = (0, 0.02, 0.05, 0.08, 0.12, 0.2, 0.4, math.inf)
SHAPE = (64, 768)
INT, Q4 = make_grid("int", 4, 64), make_grid("q4_0", 4, 32)


def chosen(alpha, grid, target, weight):
    plan = TensorPlan("w", weight.shape, {Axis.PER_OC: grid})
    return ChooseGroups(alpha).planned(plan, weight, TARGETS[target]).candidates[Axis.PER_OC]


@pytest.mark.parametrize("kind", ["even", "normal", "outliers", "alike"])
def test_the_limits_of_alpha_and_what_lies_between(kind):
    """0: the smallest group; infinity: the row; never a larger group for a smaller alpha."""
    rng = np.random.default_rng(0)
    weights = {"even": rng.uniform(-1, 1, SHAPE), "normal": rng.standard_normal(SHAPE), "outliers": weight_of(SHAPE)}
    weight = weights.get(kind, np.ones(SHAPE))
    grids = [chosen(alpha, INT, "onnxruntime", weight.astype(np.float32)) for alpha in ALPHAS]
    sizes = [grid.group_size for grid in grids]
    assert (sizes[0], sizes[-1]) == (64, 1024)
    assert sizes == sorted(sizes)
    assert all(grid.symmetric and grid.bits == 4 for grid in grids)


def test_outliers_get_small_groups():
    """A row of magnitudes that are alike is one group, one with an outlier is not."""
    rng = np.random.default_rng(0)
    alike = np.sign(rng.standard_normal(SHAPE)) * rng.uniform(0.9, 1, SHAPE)
    spiked = alike.copy()
    spiked[:, 5] *= 30
    sizes = [chosen(METHOD.steps[0].alpha, INT, "onnxruntime", w.astype(np.float32)).group_size for w in (alike, spiked)]
    assert sizes == [1024, 64]


@pytest.mark.parametrize("bits", [2, 4])
def test_a_gguf_has_formats_to_choose_from(bits):
    """Of as many bits, and only where they fit: 0 the one of least error, infinity the smallest."""
    grid = make_grid("q2_k", 2, 16) if bits == 2 else Q4
    found = [chosen(alpha, grid, "llama.cpp", weight_of(SHAPE)) for alpha in ALPHAS]
    sizes = [grid.bits_per_weight for grid in found]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    assert {grid.bits for grid in found} == {bits}
    ragged = chosen(0, Q4, "llama.cpp", weight_of((64, 96)))
    assert ragged.block_size == 32


def test_a_ragged_group_counts_by_its_weights():
    row = np.concatenate([np.full(64, 2), np.full(32, 1)]).astype(np.float32)[None]
    assert halved(row, 64) == ([128, 64], [2, pytest.approx(5 / 3)])


def test_a_long_row_is_no_reason_to_stop_early():
    """Halving 8,192 normal weights saves less than .05; merging 64 of them costs more."""
    weight = np.random.default_rng(0).standard_normal((16, 8192)).astype(np.float32)
    sizes, left = halved(weight, 64)
    assert sizes[0] == 8192 and left[1] > left[0] * (1 - METHOD.steps[0].alpha)
    assert chosen(METHOD.steps[0].alpha, INT, "onnxruntime", weight).group_size == 64


def test_what_is_left_decides():
    """The option that leaves 3.5 is beaten by a smaller one; the step from 2 to 3 costs a third of 3."""
    assert [merged([4, 3, 3.5, 2], alpha) for alpha in (0, 0.25, 0.3, 0.34)] == [3, 3, 3, 0]
    assert [merged([4, 4, 4], alpha) for alpha in (0, 0.01)] == [2, 0]
    assert [merged([0, 0], alpha) for alpha in (0, math.inf)] == [1, 0]


@pytest.fixture
def model(tmp_path):
    return make_tiny_model(tmp_path / "model", hidden=256, ffn=320)


def group_sizes(store):
    return {name: record.grid.group_size for name, record in store.records.items() if "layers" in name and record.grid}


def test_groups_differ_and_onnxruntime_multiplies_by_them(model, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "finequant", replace(METHOD, steps=(ChooseGroups(0.1), *METHOD.steps[1:])))
    source = open_checkpoint(model)
    store = quantize_checkpoint(source, tmp_path / "s", config_of("finequant"), TARGETS["onnxruntime"])
    assert set(group_sizes(store).values()) >= {64, 256}
    assert store.header["calibration"] is None
    checks = verify(writer_of("onnxruntime").write(store, tmp_path / "onnx"), source, store)
    assert checks and all(check.ok for check in checks)


def test_a_grid_that_is_asked_for_overrides_the_choice(model, tmp_path):
    config = config_of("finequant", group_size=32)
    store = quantize_checkpoint(open_checkpoint(model), tmp_path / "s", config, TARGETS["onnxruntime"])
    assert set(group_sizes(store).values()) == {32}
    assert "finequant: the grid that was asked for stands in for its own choice of one" in store.header["notes"]


def test_a_rule_may_name_a_system(model, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[rule]]\nmatch = "*.v_proj"\nmethod = "finequant"\n')
    config = config_of("rtn-oc", recipe=recipe, bits=4, grid="q4_0")
    config = replace(config, grid=replace(config.grid, name=None))
    store = quantize_checkpoint(open_checkpoint(model), tmp_path / "s", config, TARGETS["llama.cpp"])
    of = {name: record.grid.name for name, record in store.records.items() if "layers.0" in name and record.grid}
    assert {name for name, grid in of.items() if grid != "q4_0"} == {"model.layers.0.self_attn.v_proj.weight"}


def fails(capsys, *args):
    capsys.readouterr()
    assert main([*map(str, args), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_target_size_leaves_nothing_to_choose(model, tmp_path, capsys):
    args = ("quantize", model, "--out", tmp_path / "s", "--method", "finequant", "--target-size", "1MB")
    assert "--method finequant: chooses the grid of every linear" in fails(capsys, *args)


@pytest.fixture
def system(monkeypatch):
    """Puts a row into METHODS."""

    def put(**fields):
        method = Method("own", "k", "p", **{"steps": (Round(Rounder(NEAREST)),), "axes": (Axis.PER_OC,), **fields})
        monkeypatch.setitem(METHODS, "own", method)
        monkeypatch.setattr(methods, "WORDS", (*methods.WORDS, "own"))
        return method

    return put


@pytest.mark.parametrize("fields", [{"axes": (Axis.PER_IC,)}, {"steps": (FloatColumns(), Round(Rounder(NEAREST)))}])
def test_a_target_that_cannot_hold_a_system_says_so_before_any_data(system, model, tmp_path, monkeypatch, fields):
    from quantize.errors import ConfigError
    from quantize.planning.plan import build_plan

    system(**fields)
    source = open_checkpoint(model)

    def read(name: str) -> None:
        raise AssertionError(name)

    with pytest.raises(ConfigError, match=r"own.*llama\.cpp.*; choose another method"):
        build_plan(source.specs, config_of("own"), TARGETS["llama.cpp"], read)
    assert build_plan(source.specs, config_of("own"), TARGETS["onnxruntime"])


def test_steps_of_a_system_come_in_their_order(system):
    from quantize.steps.axis import ChooseAxis

    later = ChooseAxis()
    method = system(steps=(ChooseGroups(0.05), FloatColumns(), Round(Rounder(NEAREST)), later))
    assert [type(step) for step in method.plans] == [ChooseGroups]
    assert [type(step) for step in method.until_rounded] == [FloatColumns, Round]
    assert method.after_rounded == (later,)
    assert method.needs is Need.HESSIAN
