"""Folds leave a model's logits as they are, in every family; they are kept where they pay, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quantize.blocks import dequantize
from quantize.checkpoint import Checkpoint, open_checkpoint
from quantize.checkpoint.expected import expected_shapes
from quantize.grids import make_grid
from quantize.loss import output_loss
from quantize.model_config import LINEARS, ModelConfig
from quantize.rounding import ROUNDERS
from quantize.source import build_model, logits
from quantize.transforms import NAMES, TRANSFORMS, correct, transform
from quantize.transforms.fold import Basis, Fold
from quantize.transforms.layer import READERS, DecoderLayer
from quantize.types import Axis, InputStats, TensorPlan
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
GATE, UP, NORM = "mlp.gate_proj.weight", "mlp.up_proj.weight", "post_attention_layernorm.weight"


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


def layer_of(source: Checkpoint, index: int = 0, rounder: str = "rtn", axes: tuple[Axis, ...] = (Axis.PER_OC,)) -> DecoderLayer:
    """A layer of ``source`` in its own row order, with made-up statistics."""
    prefix = f"model.layers.{index}."
    tensors = {name.removeprefix(prefix): np.array(source.read(name)) for name in source.specs if name.startswith(prefix)}
    weights = {f"{linear}.weight": tensors[f"{linear}.weight"] for linear in LINEARS}
    plans = {name: TensorPlan(name, value.shape, dict.fromkeys(axes, GRID), rounder) for name, value in weights.items()}
    first = {linear: linears[0] for linears in READERS.values() for linear in linears}
    seeds = {name: seed for seed, name in enumerate(weights)}
    stats = {name: stats_of(value.shape[1], seed=seeds[first.get(name, name)]) for name, value in weights.items()}
    return DecoderLayer(source.config, plans, tensors, stats)


def all_layers(source: Checkpoint) -> list[DecoderLayer]:
    return [layer_of(source, index) for index in range(source.config.num_layers)]


def logits_of(source: Checkpoint, layers: list[DecoderLayer]) -> np.ndarray:
    """Of ``source`` with the tensors of ``layers`` in place of its own."""
    changed = {f"model.layers.{i}.{name}": value for i, layer in enumerate(layers) for name, value in layer.tensors.items()}
    return logits(build_model(source.config, lambda name: changed.get(name, source.read(name)), source.tied), TOKENS)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_candidate_leaves_the_logits_and_leads_back(source, name):
    expected = logits_of(source, [])
    for place, candidates in enumerate(TRANSFORMS[name](layer_of(source))):
        assert len(candidates) > 1
        for index in range(len(candidates)):
            layers = all_layers(source)
            for layer in layers:
                fold, before = list(TRANSFORMS[name](layer))[place][index], dict(layer.tensors)
                layer.apply(fold)
                assert all(not np.array_equal(layer.tensors[linear], before[linear]) for linear in layer.weights(fold))
                for linear in layer.plans:
                    back = layer.in_source_basis(linear, layer.tensors[linear])
                    np.testing.assert_allclose(back, before[linear], rtol=1e-6)
            np.testing.assert_allclose(logits_of(source, layers), expected, rtol=1e-4, atol=2e-5)


def test_one_after_the_other(source):
    layers = all_layers(source)
    applied = [transform(layer, NAMES) for layer in layers]
    assert all("ffn-scales" in names and "norm-gains" not in names for names in applied)
    assert all(len(layer.folds) >= len(names) for layer, names in zip(layers, applied, strict=True))
    np.testing.assert_allclose(logits_of(source, layers), logits_of(source, []), rtol=1e-4, atol=2e-5)
    for layer, other in zip(layers, all_layers(source), strict=True):
        for linear in layer.plans:
            back = layer.in_source_basis(linear, layer.tensors[linear])
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
    layer, plain = layer_of(source, 0, rounder, axes), layer_of(source, 0, rounder, axes)
    assert transform(layer, NAMES)

    def loss(one: DecoderLayer, name: str) -> float:
        rounded = [
            ROUNDERS[rounder](name, one.tensors[name], grid, axis, one.stats[name])
            for axis, grid in one.plans[name].candidates.items()
        ]
        return min(
            output_loss(plain.tensors[name], one.in_source_basis(name, dequantize(tensor)), plain.stats[name])
            for tensor in rounded
        )

    total = {id(one): sum(loss(one, name) for name in one.plans) for one in (layer, plain)}
    assert total[id(layer)] < 0.995 * total[id(plain)]


def test_what_does_not_pay_is_left(tmp_path):
    layer = layer_of(open_checkpoint(make_tiny_model(tmp_path / "m")))
    worse = Basis.scaled(np.geomspace(1e-2, 1e2, 64).astype(np.float32))
    assert layer.best([Fold({NORM: worse}, {GATE: worse, UP: worse})]) is None
    assert layer.best(next(iter(TRANSFORMS["ffn-scales"](layer)))) is not None
    del layer.plans[UP]  # stays in floats
    assert not transform(layer, NAMES) and not layer.folds
    assert not correct(layer, {name: layer.tensors[name] * np.float32(2) for name in layer.plans}, NAMES)


def test_a_fold_that_the_planned_rounder_does_not_confirm_is_left(tmp_path, monkeypatch):
    source = open_checkpoint(make_tiny_model(tmp_path / "m"))
    assert transform(layer_of(source, rounder="gptq"), ["ffn-scales"])
    layer = layer_of(source)
    fixed = {name: ROUNDERS["rtn"](name, layer.tensors[name], GRID, Axis.PER_OC) for name in layer.plans}
    monkeypatch.setitem(ROUNDERS, "gptq", lambda name, *_: fixed[name])  # right only for weights that nothing has scaled
    assert not transform(layer_of(source, rounder="gptq"), ["ffn-scales"])


def rounded_as(layer: DecoderLayer, factors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every linear as it is, but for some whose input channels are off by factors."""
    return {name: layer.tensors[name] * factors.get(name, np.float32(1)) for name in layer.plans}


def test_gains_make_up_for_scaled_columns(tmp_path):
    """Where both linears are off by the same factors the gain takes them up, but for the damping."""
    layer = layer_of(open_checkpoint(make_tiny_model(tmp_path / "m")))
    off, before = np.linspace(0.8, 1.25, 64).astype(np.float32), dict(layer.tensors)
    assert correct(layer, rounded_as(layer, {GATE: off, UP: off}), NAMES) == ["norm-gains"]
    assert [name for name, value in before.items() if not np.array_equal(layer.tensors[name], value)] == [NORM]
    np.testing.assert_allclose(layer.tensors[NORM] * off, before[NORM], rtol=0.05)


def test_gains_stay_where_nothing_is_gained(tmp_path):
    layer = layer_of(open_checkpoint(make_tiny_model(tmp_path / "m")))
    twice = rounded_as(layer, {GATE: np.full(64, 2, np.float32)})
    assert correct(layer, rounded_as(layer, {}), NAMES) == []
    assert correct(layer, twice, ["norm-scales"]) == []
    layer.stats = {name: InputStats(stats.importance, stats.n_tokens) for name, stats in layer.stats.items()}
    assert correct(layer, twice, NAMES) == []  # a diagonal does not say which channel makes up for which
