"""Grids of levels: the tables, scales of whole rows, pairs under the whole form of their errors, and a tensor's own levels."""

from __future__ import annotations

from itertools import pairwise

import make_levels
import msgspec
import numpy as np
import pytest

from exporter.targets import TARGETS
from quantize.blocks import dequantize, to_blocks
from quantize.errors import ConfigError
from quantize.grids import GRIDS, GridJson, grid_from_json, grid_to_json, make_grid
from quantize.grids.level_tables import TABLES
from quantize.grids.levels import LEVEL_GRIDS, Levels, own_levels
from quantize.planning.plan import build_plan
from quantize.rounding.gptq import gptq, visit_of
from quantize.rounding.in_turn import channels
from quantize.rounding.polish import polish, visit_codes
from quantize.rounding.rtn import rtn
from quantize.rounding.words import round_words
from quantize.types import Axis, InputStats, TensorSpec
from tests.cases import config_of, stats_of, weight_of

IDS = [grid.name for grid in LEVEL_GRIDS]
PAIRS = [grid for grid in LEVEL_GRIDS if grid.dims == 2]
OWN = Levels("levels", 2, ((-127, -20, 0, 90),))
ADADIM = TARGETS["onnxruntime+adadim"]
ERRORS = {"lm2": 0.1184, "lm3": 0.0348, "lm4": 0.00950, "hg2": 0.1074, "hg3": 0.0298}  # of the variance, as published


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_what_the_tool_makes_of_a_normal_distribution(name):
    make = make_levels.lines if name.startswith("lm") else make_levels.pairs
    table, error = make(int(name[-1]))
    assert table == TABLES[name]
    assert error == pytest.approx(ERRORS[name], rel=0.01)
    rows = np.random.default_rng(0).standard_normal((64, 4096)).astype(np.float32)
    off = dequantize(rtn("w", rows, GRIDS[name].grouped(4096), Axis.PER_OC)) - rows
    assert np.square(off).sum() / np.square(rows).sum() == pytest.approx(error, rel=0.02)


def test_single_levels_rise_with_their_codes_and_are_their_own_mirror_images():
    for name in ("lm2", "lm3", "lm4"):
        (levels,) = TABLES[name]
        assert list(levels) == sorted(set(levels)) == sorted(-level for level in levels)
    assert max(abs(level) for table in TABLES.values() for side in table for level in side) <= 63


@pytest.mark.parametrize("grid", [*LEVEL_GRIDS, OWN], ids=[*IDS, "own"])
def test_no_other_scale_of_a_ragged_row_is_much_better(grid):
    """The filling of the row counts nothing, though no level of most is near 0."""
    grid = grid.grouped(128)
    rows, importance = weight_of((12, 72)), np.random.default_rng(1).random(72, dtype=np.float32) + 0.1
    params = grid.fit(to_blocks(rows, 128), to_blocks(importance, 128))
    assert all(np.array_equal(params[key], grid.fit(to_blocks(rows, 128), to_blocks(importance * 5, 128))[key]) for key in params)

    def losses(scale):
        codes = grid.encode(rows, scale, np.zeros_like(scale), importance)
        return (np.square(grid.decode(codes, scale, np.float32(0)) - rows) * importance).sum(1)

    found = grid.scale_zero(params)[0][:, 0]
    trials = np.abs(rows).max() / np.abs(grid.values).max() * np.geomspace(0.01, 2, 300, dtype=np.float32)
    best = np.min([losses(sign * np.full((12, 1), trial)) for trial in trials for sign in (1, -1)], axis=0)
    assert (losses(found) <= 1.3 * best).all() and losses(found).sum() <= 1.02 * best.sum()


@pytest.mark.parametrize("grid", LEVEL_GRIDS, ids=IDS)
def test_filling_says_nothing_of_a_scale(grid):
    """Eight weights that end a row of two groups have the scale of a group in which they stand eight times."""
    rows, grid = weight_of((12, 72)), grid.grouped(64)
    filled, full = grid.fit(to_blocks(rows, 64))["d"][:, 1], grid.fit(np.tile(rows[:, None, 64:], 8))["d"][:, 0]
    np.testing.assert_allclose(filled, full, rtol=2e-3)


@pytest.mark.parametrize("grid", PAIRS, ids=lambda grid: grid.name)
def test_no_other_point_is_nearer(grid):
    rng = np.random.default_rng(3)
    x, w = (rng.uniform(low, 2, (50, 8)).astype(np.float32) for low in (-2, 0.1))
    scale = np.float32(0.02)
    found = grid.decode(grid.encode(x, scale[None], np.float32(0), w), scale, np.float32(0)).reshape(50, 4, 2)
    points = scale * np.array(grid.levels, np.float32).T
    costs = (np.square(points - x.reshape(50, 4, 1, 2)) * w.reshape(50, 4, 1, 2)).sum(-1)
    own = (np.square(found - x.reshape(50, 4, 2)) * w.reshape(50, 4, 2)).sum(-1)
    np.testing.assert_allclose(own, costs.min(-1), rtol=1e-4)


@pytest.mark.parametrize("grid", PAIRS, ids=lambda grid: grid.name)
def test_gptq_takes_the_point_that_costs_least_with_the_second_channel_bearing_the_first(grid):
    """Of all points, under the whole form of the inverse Hessian's corner; an odd channel at the end stands alone."""
    _, factor = visit_of(stats_of(5).hessian, 2)
    mix, tolls = (factor / factor.diagonal()[:, None]).T, factor.diagonal() ** -2
    wanted = weight_of((5, 600))
    these = channels(wanted, mix, scale=np.full_like(wanted, 0.004), zero=np.zeros_like(wanted))
    round_words(these, grid, tolls)
    points = np.float32(0.004) * np.array(grid.levels, np.float32)
    for first in (0, 2, 4):
        left = wanted[first : first + 2] - mix[first : first + 2, :first] @ these.steps[:first]
        step = left[0] - points[0][:, None]
        cost = tolls[first] * np.square(step)
        if first < 4:
            second = left[1] - mix[first + 1, first] * step - points[1][:, None]
            cost = cost + tolls[first + 1] * np.square(second)
        chosen = tolls[first : first + 2] @ np.square(these.steps[first : first + 2])
        np.testing.assert_allclose(chosen, cost.min(0), rtol=1e-3, atol=1e-6 * cost.min(0).max())
    for i in range(5):
        target = wanted[i] - mix[i, :i] @ these.steps[:i]
        np.testing.assert_allclose(these.steps[i], target - these.values[i], rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(these.values, grid.decode(these.codes, these.scale, these.zero))


@pytest.mark.parametrize("grid", PAIRS, ids=lambda grid: grid.name)
def test_a_second_visit_leaves_no_pair_that_could_be_better_alone(grid):
    """Of neighbours so alike that each would make up for the other, which a diagonal does not see."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((512, 32)), 2, axis=1) + 0.4 * rng.standard_normal((512, 64))
    hessian, weight = (x.T @ x / 512).astype(np.float32), weight_of((24, 64))
    stats, grid = InputStats(hessian, 512), grid.grouped(64)
    moved = rtn("w", weight, grid, Axis.PER_OC, stats)
    losses = []
    for _ in range(30):
        error = weight - dequantize(moved)
        losses.append(np.einsum("oi,ij,oj->o", error, hessian, error))
        moved = visit_codes(moved, weight, stats)
    assert all((after <= before * (1 + 1e-4)).all() for before, after in pairwise(losses))
    assert losses[-1].sum() < 0.9 * losses[0].sum()
    values = dequantize(moved)
    points = np.array(grid.levels, np.float32).T
    for pair in range(0, 64, 2):
        for row in range(0, 24, 5):
            other = np.repeat(values[row : row + 1], len(points), axis=0)
            other[:, pair : pair + 2] = points * moved.params["d"][row].astype(np.float32)
            error = weight[row] - other
            best = np.einsum("ki,ij,kj->k", error, hessian, error).min()
            assert losses[-1][row] <= best * (1 + 1e-3)


@pytest.mark.parametrize("grid", LEVEL_GRIDS, ids=IDS)
def test_whatever_rounds_them_they_are_points(grid):
    grid, weight, stats = grid.grouped(256), weight_of((16, 160)), stats_of(160, rows=16)
    nearest = rtn("w", weight, grid, Axis.PER_OC, stats)
    by_gptq = gptq(nearest, weight, stats)
    pairs = set(zip(*grid.levels, strict=True))
    for tensor in (nearest, by_gptq, polish(by_gptq, weight, stats)):
        if grid.dims == 2:
            levels = grid.values[tensor.codes].astype(int)
            assert set(zip(levels[:, ::2].ravel().tolist(), levels[:, 1::2].ravel().tolist(), strict=True)) <= pairs


def test_a_tensors_own_levels_are_nearer_and_travel_in_digits_of_one_length():
    rows = np.random.default_rng(0).laplace(size=(16, 512)).astype(np.float32)
    for bits in (2, 3, 4):
        own, normal = own_levels(rows, bits, 512), make_grid(f"lm{bits}", bits, 512)
        lost = [np.square(dequantize(rtn("w", rows, grid, Axis.PER_OC)) - rows).sum() for grid in (own, normal)]
        assert lost[0] < 0.95 * lost[1]
        told = grid_to_json(own)
        assert len(told["levels"]) == 2 << bits and grid_from_json(told) == own
        assert msgspec.convert(told, GridJson).make() == own
    assert own_levels(np.zeros((2, 64), np.float32), 3, 64) == make_grid("lm3", 3, 64)
    assert "levels" not in grid_to_json(make_grid("lm3", 3, 64))


BAD = {  # of {"grid": "levels", "bits": 2, "group_size": 32, "symmetric": true, "levels": "81ec005a"}
    "-128": {"levels": "80ec005a"},
    "all 0": {"levels": "00000000"},
    "too few": {"levels": "81ec00"},
    "too many": {"levels": "81ec005a00"},
    "falling": {"levels": "5a00ec81"},
    "no digits": {"levels": "x1ec005a"},
    "none": {"levels": None},
    "a width without levels": {"bits": 8},
    "a huge width": {"bits": 2**31},
    "a type of scales": {"scale_dtype": "float32"},
    "asymmetric": {"symmetric": False},
    "odd groups": {"group_size": 48},
    "a named grid's": {"grid": "lm2"},
    "an int grid's": {"grid": "int"},
    "a ggml grid's": {"grid": "q4_0", "bits": 4},
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_table_is_refused(bad):
    good = grid_to_json(OWN)
    assert good["levels"] == "81ec005a" and msgspec.convert(good, GridJson).make() == OWN
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(good | BAD[bad], GridJson)


Q, EMBED = "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"


def planned(target="onnxruntime+adadim", shape=(40, 576), **options):
    specs = {EMBED: TensorSpec(EMBED, "BF16", (300, shape[1])), Q: TensorSpec(Q, "BF16", shape)}
    return next(plan for plan in build_plan(specs, config_of(**options), TARGETS[target]) if plan.name == Q)


@pytest.mark.parametrize("name", IDS)
def test_a_row_is_a_group_where_none_is_asked_for(name):
    assert planned(method="rtn-oc", grid=name).candidates == {Axis.PER_OC: make_grid(name, int(name[-1]), 1024)}
    assert planned(method="rtn-oc", grid=name, group_size=64).candidates[Axis.PER_OC].group_size == 64
    per_ic = planned(method="rtn-ada", grid=name).candidates.get(Axis.PER_IC)
    assert (per_ic is None) == name.startswith("hg") and (per_ic is None or per_ic.group_size == 64)


REFUSED = {
    "bits": ({"bits": 4}, "grid='lm3' stores 3 bits, but bits=4 was asked for"),
    "groups": ({"group_size": 16}, "group size 16: grid lm3 has powers of two of at least 32"),
    "scales": ({"scale_dtype": "float32"}, "has scales of its own"),
    "stock onnxruntime": ({"target": "onnxruntime"}, "has no operator for lm3; onnxruntime.adadim has, and iq4_nl"),
    "GGUF": ({"target": "llama.cpp"}, "iq4_nl is the nearest to lm3; onnxruntime.adadim can; drop grid.name='lm3'"),
    "an embedding": ({"embedding": "lm3", "grid": None}, "embedding='lm3': levels are of linears alone; choose source, int4"),
    "pairs per IC": ({"grid": "hg3", "method": "gptq-ic"}, "multiplies pairs of input channels, and per-IC groups of hg3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_goes_together_with_no_levels(case):
    options, told = REFUSED[case]
    with pytest.raises(ConfigError, match=told) as error:
        planned(**{"grid": "lm3", "method": "gptq-oc", **options})
    assert "\n" not in str(error.value)


def test_an_odd_row_and_a_stack_of_experts_fall_back_to_whole_numbers():
    plan = planned(shape=(40, 577), grid="hg3", method="rtn-oc", allow_fallback=True)
    assert plan.candidates == {Axis.PER_OC: make_grid("int", 3, 64)} and "577 is odd" in plan.note
    grid = make_grid("lm3", 3, 64)
    assert "QMoE, which has no levels" in ADADIM.refuses(grid, Axis.PER_OC, (4, 64, 64))
    assert ADADIM.fallback(grid, Axis.PER_OC, (4, 64, 64)) == make_grid("int", 3, 64)
    assert ADADIM.refuses(grid, Axis.PER_IC, (41, 577)) is None
