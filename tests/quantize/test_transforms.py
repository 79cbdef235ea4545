"""Folds leave a model's logits as they are, in every family; they are kept where they pay, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporter.targets import TARGETS
from quantize.architecture.families import expected_shapes, fold_sites
from quantize.block import Block, Kit, Rounded
from quantize.blocks import dequantize
from quantize.checkpoint import Checkpoint, open_checkpoint
from quantize.checkpoint.row_order import RowOrders
from quantize.fold import Basis, Fold
from quantize.grids import make_grid
from quantize.loss import output_loss
from quantize.methods import ROUNDERS
from quantize.model_config import ModelConfig, block_prefix
from quantize.rounding import Rounder
from quantize.source import build_model, logits
from quantize.steps.fold import ChangeBasis, Correction, best_fold, touched
from quantize.transforms import CORRECTIONS, NAMES, TRANSFORMS
from quantize.types import Axis, InputStats, RowOrder, TensorPlan
from tests.cases import stats_of, weight_of
from tests.tiny import Sizes, make_tiny_model, tiny_weights, write_weights

TOKENS = np.arange(3, 35, dtype=np.int64)[None]
MODELS = {  # heads that share or do not, sizes that divide nothing evenly
    "llama": {"heads": 4, "kv_heads": 2},
    "mistral": {"heads": 4, "kv_heads": 1, "ffn": 70},
    "qwen2": {"heads": 6, "kv_heads": 2, "hidden": 60, "ffn": 83},
    "qwen3": {"heads": 4, "kv_heads": 4, "hidden": 52, "head_dim": 10, "ffn": 77},
    "llama with biases": {"heads": 4, "kv_heads": 2, "ffn": 50},
}
GRID = make_grid("int", 3, 16)
LAYER = "model.layers.0."
GATE, UP, NORM = f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight", f"{LAYER}post_attention_layernorm.weight"


@pytest.fixture(scope="module", params=MODELS)
def source(request, tmp_path_factory) -> Checkpoint:
    family, _, biases = request.param.partition(" ")
    folder = make_tiny_model(tmp_path_factory.mktemp(family) / "m", family, **MODELS[request.param])
    return open_checkpoint(with_biases(folder) if biases else folder)


def with_biases(folder: Path) -> Path:
    """Every linear of a llama may have one."""
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | {"attention_bias": True, "mlp_bias": True}
    path.write_text(json.dumps(raw))
    rng, weights = np.random.default_rng(5), tiny_weights(Sizes(64, 4, 2, 16, 50, 2, 320), "llama", True, 0)
    for name, shape in expected_shapes(ModelConfig.from_hf(raw, "")).items():
        if name.endswith(".bias"):
            weights[name] = rng.standard_normal(shape, dtype=np.float32)
    write_weights(folder, weights)
    return folder


def kit_of(source: Checkpoint) -> Kit:
    return Kit(TARGETS["onnxruntime+adadim"], RowOrders(source.config, RowOrder.HF), ROUNDERS, 1.5)


def block_of(source: Checkpoint, index: int = 0, rounder: str = "rtn", axes: tuple[Axis, ...] = (Axis.PER_OC,)) -> Block:
    """A block of ``source`` in its own row order, with made-up statistics."""
    prefix = block_prefix(index)
    tensors = {name: np.array(source.read(name)) for name in source.specs if name.startswith(prefix)}
    weights = {name: value for name, value in tensors.items() if value.ndim > 1}
    plans = {name: TensorPlan(name, value.shape, dict.fromkeys(axes, GRID), rounder) for name, value in weights.items()}
    sites = fold_sites(source.config, prefix, {name: spec.shape for name, spec in source.specs.items()})
    first = {linear: linears[0] for linears in sites.norms.values() for linear in linears}
    seeds = {name: seed for seed, name in enumerate(weights)}
    stats = {name: stats_of(value.shape[1], seed=seeds[first.get(name, name)]) for name, value in weights.items()}
    return Block(plans, tensors, stats, fold_sites=sites)


def transform(block: Block, names, kit: Kit) -> Block:
    """All of ``names``, one after the other."""
    for name in TRANSFORMS:
        block = ChangeBasis(name)(block, list(block.plans), kit) if name in names else block
    return block


def correct(block: Block, rounded: dict[str, np.ndarray], names, kit: Kit) -> Block:
    """As if ``rounded`` were what the codes of ``block`` stand for."""
    fine = make_grid("int", 8, 16, scale_dtype="float32")
    tensors = {name: ROUNDERS["rtn"](name, value, fine, Axis.PER_OC) for name, value in rounded.items()}
    block = replace(block, rounded={name: Rounded(tensor, "rtn", None) for name, tensor in tensors.items()})
    for name in CORRECTIONS:
        block = Correction(name)(block, list(block.plans), kit) if name in names else block
    return block


def applied(block: Block) -> list[str]:
    return list(block.report.get("applied", []))


def all_blocks(source: Checkpoint) -> list[Block]:
    return [block_of(source, index) for index in range(source.config.num_layers)]


def logits_of(source: Checkpoint, blocks: list[Block]) -> np.ndarray:
    """Of ``source`` with the tensors of ``blocks`` in place of its own."""
    changed = {name: value for block in blocks for name, value in block.tensors.items()}
    return logits(build_model(source.config, lambda name: changed.get(name, source.read(name)), source.tied), TOKENS)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_candidate_leaves_the_logits_and_leads_back(source, name):
    expected, plain = logits_of(source, []), all_blocks(source)
    for place, candidates in enumerate(TRANSFORMS[name](plain[0], plain[0].fold_sites)):
        assert len(candidates) > 1
        for index in range(len(candidates)):
            blocks = list[Block]()
            for before in plain:
                fold = list(TRANSFORMS[name](before, before.fold_sites))[place][index]
                block = before.folded(fold)
                assert all(not np.array_equal(block.tensors[linear], before.tensors[linear]) for linear in touched(block, fold))
                for linear in block.plans:
                    back = block.in_source_basis(linear, block.tensors[linear])
                    np.testing.assert_allclose(back, before.tensors[linear], rtol=1e-6)
                blocks.append(block)
            np.testing.assert_allclose(logits_of(source, blocks), expected, rtol=1e-4, atol=2e-5)


def test_one_after_the_other(source):
    blocks = [transform(block, NAMES, kit_of(source)) for block in all_blocks(source)]
    assert all("ffn-scales" in applied(block) and "norm-gains" not in applied(block) for block in blocks)
    assert all(len(block.folds) >= len(applied(block)) for block in blocks)
    np.testing.assert_allclose(logits_of(source, blocks), logits_of(source, []), rtol=1e-4, atol=2e-5)
    for block, other in zip(blocks, all_blocks(source), strict=True):
        for linear in block.plans:
            back = block.in_source_basis(linear, block.tensors[linear])
            np.testing.assert_allclose(back, other.tensors[linear], rtol=1e-5)


@pytest.mark.parametrize("diagonal", [False, True])
def test_statistics_follow_and_losses_stay(diagonal):
    """What is read and what is made, scaled and in another order: an error costs in either basis the same."""
    weight, error, rng = weight_of((24, 40)), weight_of((24, 40), 3) / 9, np.random.default_rng(2)
    stats = InputStats(stats_of(40).hessian, 512, rng.random(24, dtype=np.float32))
    if diagonal:
        stats = InputStats(stats.importance, 512, stats.row_weight)
    bases = [Basis(rng.permutation(size), np.exp(rng.standard_normal(size)).astype(np.float32)) for size in (24, 40)]
    fold = Fold({"w": bases[0]}, {"w": bases[1]})
    x = rng.standard_normal((40, 5))
    folded_x = bases[1].factor[:, None] * x[bases[1].order]
    np.testing.assert_allclose(fold.tensor("w", weight) @ folded_x, bases[0].made(weight @ x), rtol=1e-4, atol=1e-6)
    found = output_loss(fold.tensor("w", weight), fold.tensor("w", weight + error), fold.stats({"w": stats})["w"])
    assert found == pytest.approx(output_loss(weight, weight + error, stats), rel=1e-4)


@pytest.mark.parametrize("rounder", ["rtn", "gptq"])
@pytest.mark.parametrize("axes", [(Axis.PER_OC,), (Axis.PER_IC,), tuple(Axis)])
def test_the_best_fold_lowers_the_loss_of_what_is_stored(tmp_path, rounder, axes):
    source = open_checkpoint(make_tiny_model(tmp_path / "m"))
    plain = block_of(source, 0, rounder, axes)
    block = transform(plain, NAMES, kit_of(source))
    assert applied(block)

    def loss(one: Block, name: str) -> float:
        rounded = [
            ROUNDERS[rounder](name, one.tensors[name], grid, axis, one.stats[name])
            for axis, grid in one.plans[name].candidates.items()
        ]
        return min(
            output_loss(plain.tensors[name], one.in_source_basis(name, dequantize(tensor)), plain.stats[name])
            for tensor in rounded
        )

    assert sum(loss(block, name) for name in block.plans) < 0.995 * sum(loss(plain, name) for name in block.plans)


def test_what_does_not_pay_is_left(tmp_path):
    source = open_checkpoint(make_tiny_model(tmp_path / "m"))
    block, kit = block_of(source), kit_of(source)
    worse = Basis.scaled(np.geomspace(1e-2, 1e2, 64).astype(np.float32))
    assert best_fold(block, [Fold({NORM: worse}, {GATE: worse, UP: worse})], kit) is None
    assert best_fold(block, next(iter(TRANSFORMS["ffn-scales"](block, block.fold_sites))), kit) is not None
    plans = {name: plan for name, plan in block.plans.items() if name != UP}  # which stays in floats
    partly = transform(replace(block, plans=plans), NAMES, kit)
    assert not applied(partly) and not partly.folds
    assert not applied(correct(partly, {name: block.tensors[name] * np.float32(2) for name in plans}, NAMES, kit))


def test_a_fold_that_the_planned_rounder_does_not_confirm_is_left(tmp_path):
    source = open_checkpoint(make_tiny_model(tmp_path / "m"))
    block, kit = block_of(source, rounder="gptq"), kit_of(source)
    assert applied(transform(block, ["ffn-scales"], kit))
    fixed = {name: ROUNDERS["rtn"](name, block.tensors[name], GRID, Axis.PER_OC) for name in block.plans}
    stubborn = Rounder("gptq", improve=(lambda tensor, *_: fixed[tensor.name],))  # right only for what nothing has scaled
    assert not applied(transform(block, ["ffn-scales"], replace(kit, rounders={**ROUNDERS, "gptq": stubborn})))


def rounded_as(block: Block, factors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every linear as it is, but for some whose input channels are off by factors."""
    return {name: block.tensors[name] * factors.get(name, np.float32(1)) for name in block.plans}


def test_gains_make_up_for_scaled_columns(tmp_path):
    """Where both linears are off by the same factors the gain takes them up, but for the damping and the other norm's 8 bits."""
    source = open_checkpoint(make_tiny_model(tmp_path / "m"))
    block, off = block_of(source), np.linspace(0.8, 1.25, 64).astype(np.float32)
    found = correct(block, rounded_as(block, {GATE: off, UP: off}), NAMES, kit_of(source))
    assert applied(found) == ["norm-gains"]
    np.testing.assert_allclose(found.tensors[NORM] * off, block.tensors[NORM], rtol=0.05)
    for name, value in block.tensors.items():
        np.testing.assert_allclose(found.tensors[name], value, rtol=0.3 if name == NORM else 0.01)


def test_gains_stay_where_nothing_is_gained(tmp_path):
    source = open_checkpoint(make_tiny_model(tmp_path / "m"))
    block, kit = block_of(source), kit_of(source)
    twice = rounded_as(block, {GATE: np.full(64, 2, np.float32)})
    assert not applied(correct(block, twice, ["norm-scales"], kit))
    diagonal = {name: InputStats(stats.importance, stats.n_tokens) for name, stats in block.stats.items()}
    assert not applied(correct(replace(block, stats=diagonal), twice, NAMES, kit))  # which does not say what makes up for what
