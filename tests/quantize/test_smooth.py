"""Smoothing before turns: scales by what is seen, folded wherever a block takes them, and turns found behind them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exporter.targets import TARGETS
from quantize import open_checkpoint
from quantize.architecture.families import fold_sites
from quantize.block import Block, Kit
from quantize.checkpoint.row_order import RowOrders
from quantize.grids import make_grid
from quantize.inputs import Inputs
from quantize.methods import ROUNDERS
from quantize.steps.smooth import Smooth
from quantize.steps.spread import peak
from quantize.steps.turn_blocks import TurnBlocks
from quantize.types import Axis, InputStats, TensorPlan
from tests.tiny import make_tiny_model

TARGET = TARGETS["onnxruntime"]
LAYER = "model.layers.0."
GRIDS = {Axis.PER_OC: make_grid("int", 4, 32)}


def seen(channels: int, seed: int) -> Inputs:
    """Every eighth channel is loud, the same of each head."""
    rng = np.random.default_rng(seed)
    sample = rng.standard_normal((60, channels)).astype(np.float32)
    sample[:, ::8] *= 30
    return Inputs(sample, np.ones(60, np.float32), sample.min(0) * 2, sample.max(0) * 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Block, Kit]:
    path = make_tiny_model(
        tmp_path_factory.mktemp("smooth") / "m", layers=1, hidden=96, heads=4, kv_heads=2, head_dim=32, ffn=160
    )
    source = open_checkpoint(path)
    names = [name for name in source.specs if name.startswith(LAYER)]
    tensors = {name: source.read(name) for name in names}
    linears = [name for name, value in tensors.items() if value.ndim > 1]
    shapes = {name: value.shape for name, value in tensors.items()}
    at = fold_sites(source.config, LAYER, shapes)
    assert at is not None and at.values is not None
    alone = ((at.values.output,), (at.mlp.down,))
    sites = (*at.norms.values(), *alone)
    stats = {}
    for seed, site in enumerate(sites):
        inputs = seen(shapes[site[0]][1], seed)
        moment = inputs.sample.T @ inputs.sample / 60
        stats |= {name: InputStats(moment, 60, inputs=inputs) for name in site}
    plans = {name: TensorPlan(name, shapes[name], GRIDS, turn_blocks=32) for name in linears}
    kit = Kit(TARGET, RowOrders(source.config, TARGET.row_order), ROUNDERS, 1.5, seed=3)
    return Block(plans, tensors, stats, sites, at), kit


def test_products_stay_and_loud_channels_do_not(made):
    block, kit = made
    smooth = Smooth(0.6)(block, list(block.plans), kit)
    assert smooth.report == {"applied": ["smooth"]} and len(smooth.folds) == 4
    for name in block.plans:
        back, weight = smooth.in_source_basis(name, smooth.tensors[name]), block.tensors[name]
        np.testing.assert_allclose(back, weight, atol=1e-5 * np.abs(weight).max())
        ratio = [np.ptp(np.log(one.stats[name].inputs.peak)) for one in (block, smooth)]
        assert ratio[1] < 0.75 * ratio[0], name


@pytest.mark.parametrize("alpha", [0.5, 0.6])
def test_scales_are_those_of_the_paper(made, alpha):
    """Of a norm's channels, up to a factor that all have: the ends of the whole text tell, and all linears behind the norm."""
    block, kit = made
    smooth = Smooth(alpha)(block, list(block.plans), kit)
    norm, linears = next(iter(block.fold_sites.norms.items()))
    loud = np.maximum(np.abs(block.stats[linears[0]].inputs.low), np.abs(block.stats[linears[0]].inputs.high))
    large = np.max([np.abs(block.tensors[name]).max(0) for name in linears], axis=0)
    wanted = large ** (1 - alpha) / loud**alpha
    found = smooth.tensors[norm] / block.tensors[norm]
    np.testing.assert_allclose(found / found[0], wanted / wanted[0], rtol=1e-4)


def test_nothing_is_smoothed_for_others(made):
    """What no linear of the method reads or makes stays as it is, and so does a block of which a linear stays floats."""
    block, kit = made
    down = [block.fold_sites.mlp.down]
    smooth = Smooth(0.6)(block, down, kit)
    assert len(smooth.folds) == 1 and smooth.tensors[down[0]] is not block.tensors[down[0]]
    kept = {name: plan for name, plan in block.plans.items() if name not in down}
    floats = replace(block, plans=kept)
    assert Smooth(0.6)(floats, list(kept), kit) is floats


def test_each_input_has_one_turn(made):
    block, kit = made
    turned = TurnBlocks()(block, list(block.plans), kit)
    for site in block.sites:
        turns = [turned.plans[name].turn for name in site]
        assert all(turn is turns[0] for turn in turns) and turns[0].site == site[0]
        sample = block.stats[site[0]].inputs.sample
        assert peak(turns[0].apply(sample)) < 0.6 * peak(sample)
    assert len({id(plan.turn) for plan in turned.plans.values()}) == len(block.sites)


def test_what_is_not_to_be_turned_is_not(made):
    """One of a site, and one whose plan says so."""
    block, kit = made
    first, second, *_ = block.sites[0]
    plans = {**block.plans, first: replace(block.plans[first], turn_blocks=0)}
    some = [name for name in plans if name != block.fold_sites.mlp.down]
    turned = TurnBlocks()(replace(block, plans=plans), some, kit)
    assert turned.plans[first].turn is None and turned.plans[block.fold_sites.mlp.down].turn is None
    assert turned.plans[second].turn.site == second
    without = TurnBlocks()(replace(block, sites=()), list(block.plans), kit)
    assert {plan.turn.site for plan in without.plans.values()} == set(block.plans)
