"""Turns of inputs: Hadamard matrices, what becomes of weights, moments and slopes, and how a store says it."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from exporter.cli.main import main
from exporter.made_for import target_of
from exporter.targets import TARGETS
from quantize import build_plan, open_checkpoint, quantize_checkpoint
from quantize.block import Block, Kit, as_multiplied
from quantize.blocks import dequantize
from quantize.checkpoint.row_order import RowOrders
from quantize.errors import ConfigError, StoreError
from quantize.fold import Basis, Fold
from quantize.grids import make_grid
from quantize.loss import output_loss
from quantize.methods import METHODS, ROUNDERS
from quantize.rounding.rtn import rtn
from quantize.steps import fold as fold_step
from quantize.steps.axis import ChooseAxis
from quantize.steps.descent import Schedule
from quantize.steps.fold import foldable
from quantize.steps.learn_floats import tune
from quantize.steps.round import Round
from quantize.store.tensors import QuantizedStore
from quantize.turn import LEAST, PALEY, Rotation, hadamard, largest_run, orders_of
from quantize.types import Axis, InputStats, RowOrder, TensorPlan, TensorSpec
from quantize.weight import turned, turned_back
from tests.cases import config_of, stats_of, weight_of
from tests.stores import reseal
from tests.tiny import make_tiny_model

ADADIM = TARGETS["onnxruntime+adadim"]
GRID = make_grid("int", 3, 64)
WHOLE = {576: (36, 16), 1536: (48, 32), 896: (28, 32), 4864: (76, 64), 5632: (88, 64), 2048: (32, 64)}
SUM = 4e-6  # of float32 sums over a row, against its largest value
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize("order", [1, 2, 4, 64, *PALEY, 24, 88])
def test_rows_are_orthogonal(order):
    matrix = hadamard(order).astype(int)
    assert (np.abs(matrix) == 1).all()
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order, dtype=int))


@pytest.mark.parametrize("size", WHOLE)
def test_a_whole_row_is_turned_and_turned_back(size):
    turn, x = Rotation.of(size, 3), weight_of((7, size))
    assert turn == Rotation(size, 3) and orders_of(size) == (len(turn.left), len(turn.right)) == WHOLE[size]
    y = turn.apply(x)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    np.testing.assert_allclose(turn.back(y), x, atol=SUM * np.abs(x).max())
    assert np.abs(y).max() < np.abs(x).max() / 2  # outliers are spread


def test_channels_without_a_matrix_are_turned_in_runs():
    assert Rotation.of(100, 0) == Rotation(20, 0) and Rotation.of(11008, 0) == Rotation(256, 0)
    assert Rotation.of(33, 0) is None and Rotation.of(LEAST - 1, 0) is None
    assert largest_run(33) == 1
    turn, x = Rotation(20, 0), weight_of((5, 100))
    np.testing.assert_allclose(turn.back(turn.apply(x)), x, atol=SUM)
    signs = turn.signs(100).reshape(5, 20)
    assert len(np.unique(signs, axis=0)) == 5  # each run has its own
    alone = np.concatenate([by_definition(turn, signs[run])[:, :20] @ x[0, run * 20 :][:20] for run in range(5)])
    np.testing.assert_allclose(turn.apply(x)[0], alone, atol=SUM)


def by_definition(turn: Rotation, signs: np.ndarray) -> np.ndarray:
    return np.kron(turn.left, turn.right).astype(np.float32) * signs / np.float32(np.sqrt(turn.size))


@pytest.mark.parametrize("size", [96, 576])
def test_it_is_the_product_of_signs_and_two_factors(size):
    turn = Rotation(size, 9)
    matrix = turn.matrix(size)
    np.testing.assert_allclose(matrix, by_definition(turn, turn.signs(size)), atol=1e-6)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-5)


def test_signs_are_the_same_for_ever():
    """A file that was written keeps its meaning whatever is installed."""
    found = [hashlib.sha256(Rotation(576, seed).signs(count).tobytes()).hexdigest()[:16] for seed, count in ((0, 576), (1, 1152))]
    assert found == ["50eea68562c821bd", "478012f95a703bf1"]
    assert np.array_equal(Rotation(576, 1).signs(1152)[:576], Rotation(576, 1).signs(576))
    factors = Rotation(4864, 0)
    assert hashlib.sha256(factors.left.tobytes() + factors.right.tobytes()).hexdigest()[:16] == "f779ecd71276aead"


def test_moments_are_those_of_the_turned_input():
    rng, turn = np.random.default_rng(0), Rotation(96, 0)
    x = (rng.standard_normal((500, 96)) * rng.uniform(0.1, 10, 96)).astype(np.float32)
    stats = InputStats(x.T @ x / 500, 500, np.ones(4, np.float32)).turned(turn)
    y = turn.apply(x)
    np.testing.assert_allclose(stats.hessian, y.T @ y / 500, atol=1e-4 * np.abs(stats.hessian).max())
    assert np.array_equal(stats.hessian, stats.hessian.T) and stats.n_tokens == 500 and stats.row_weight is not None
    diagonal = InputStats(np.arange(192, dtype=np.float32), 1).turned(turn).hessian
    assert np.array_equal(diagonal, np.repeat([47.5, 143.5], 96))  # of each run its mean


TURN = Rotation(96, 0)


def block(rounder: str, turns=(TURN, TURN)) -> Block:
    """Two linears that share an input."""
    stats, grids = stats_of(96), {Axis.PER_OC: GRID}
    plans = {name: TensorPlan(name, (40, 96), grids, rounder, turn=turn) for name, turn in zip("ab", turns, strict=True)}
    tensors = {"a": weight_of((40, 96), 1), "b": weight_of((40, 96), 2)}
    return Block(plans, tensors, dict.fromkeys("ab", stats), (("a", "b"),))


KIT = Kit(ADADIM, RowOrders(None, RowOrder.HF), ROUNDERS, 1.5)


@pytest.mark.parametrize("rounder", ["rtn", "gptq"])
def test_rounding_is_that_of_the_turned_problem(rounder):
    """Beside a linear that shares the input and is not turned."""
    made = block(rounder, (Rotation(96, 0), None))
    done = ChooseAxis()(Round(ROUNDERS[rounder])(made, "ab", KIT), "ab", KIT)
    turn, weight, stats = Rotation(96, 0), made.tensors["a"], made.stats["a"]
    alone = ROUNDERS[rounder]("a", turn.apply(weight), GRID, Axis.PER_OC, stats.turned(turn))
    tensor = done.rounded["a"].tensor
    assert np.array_equal(tensor.codes, alone.codes)
    plain = ROUNDERS[rounder]("b", made.tensors["b"], GRID, Axis.PER_OC, stats)
    assert np.array_equal(done.rounded["b"].tensor.codes, plain.codes)
    dense = done.stored("a", tensor).dense()
    np.testing.assert_allclose(dense, turn.back(dequantize(tensor)), atol=0)
    assert done.rounded["a"].loss == pytest.approx(output_loss(weight, dense, stats), rel=1e-3)
    assert np.linalg.norm(dense - weight) < 0.5 * np.linalg.norm(weight)


def test_linears_that_share_an_input_share_the_turned_one():
    """So that GPTQ visits its channels once."""
    other = block("gptq", (Rotation(96, 0), Rotation(48, 0)))
    for made, shared in ((block("gptq"), True), (other, False)):
        one, two = as_multiplied(made.stats, made.plans).values()
        assert (one.hessian is two.hessian) is shared


def test_a_change_of_basis_is_judged_by_turned_weights():
    """A weight on its grid before it is turned is on none afterwards, so a fold may help it."""
    made, weight = block("rtn"), dequantize(rtn("a", weight_of((40, 96), 1), GRID, Axis.PER_OC))
    made = replace(made, tensors={**made.tensors, "a": weight}, fold_sites="somewhere")
    assert foldable(made) == "somewhere"
    plans = {**made.plans, "a": replace(made.plans["a"], turn=None)}
    assert foldable(replace(made, plans=plans)) is None
    scaled = Fold(read={"a": Basis.scaled(np.linspace(0.5, 2, 96).astype(np.float32))})
    turn, stats = TURN, scaled.stats(made.stats)["a"].turned(TURN)
    tensor = ROUNDERS["rtn"]("a", turn.apply(scaled.tensor("a", weight)), GRID, Axis.PER_OC, stats)
    expected = output_loss(weight, scaled.back("a", turn.back(dequantize(tensor))), made.stats["a"])
    assert fold_step._loss(made, scaled, scaled, KIT, False) == pytest.approx(expected, rel=1e-3)


class Bowl:
    """A student whose loss is the squared distance of one weight from ``wanted``."""

    sequences = 12

    def __init__(self, wanted: np.ndarray) -> None:
        self.wanted = wanted

    def put(self, name: str, weight: np.ndarray, learns: bool) -> None:
        self.weight = weight

    def loss(self, sequences: np.ndarray) -> float:
        return float(np.square(self.weight - self.wanted).mean())

    def gradients(self, sequences: np.ndarray) -> dict[str, np.ndarray]:
        return {"w": 2 * (self.weight - self.wanted) / self.weight.size}


def test_what_learns_goes_down_the_turned_slope():
    """Scales that are all a fifth too large are found again, which a slope in the source's basis does not lead to."""
    turn, weight = Rotation(96, 0), weight_of((24, 96))
    tensor = rtn("w", turn.apply(weight), make_grid("int", 4, 32, scale_dtype="float32"), Axis.PER_OC)
    wide = replace(tensor, params={**tensor.params, "scale": tensor.params["scale"] * np.float32(1.2)})
    student, schedule = Bowl(turn.back(dequantize(tensor))), Schedule("t", 40, 2, 4, 0, lambda _: 0.02)
    found = tune([wide], student, KIT.orders, schedule, {"w": turn})
    assert found.after < 0.05 * found.before
    np.testing.assert_allclose(student.weight, turn.back(dequantize(found.tensors[0])), atol=1e-6)


def test_none_leaves_everything_where_it_is():
    weight = weight_of((4, 32))
    assert turned(weight, None) is weight and turned_back(weight, None) is weight


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("turn") / "model", layers=1, hidden=96, heads=3, kv_heads=1, ffn=100)


@pytest.fixture(scope="module")
def source(model):
    return open_checkpoint(model)


@pytest.fixture(scope="module")
def store(source, tmp_path_factory) -> QuantizedStore:
    out = tmp_path_factory.mktemp("turn") / "store"
    return quantize_checkpoint(source, out, config_of("higgs", grid="int", seed=5), ADADIM)


def test_a_store_says_how_inputs_are_turned(source, store):
    linears = {name: record for name, record in store.records.items() if record.grid and "layers" in name}
    assert {record.turn for name, record in linears.items() if name != DOWN} == {Rotation(96, 5)}
    assert linears[DOWN].turn == Rotation(20, 5)
    said = f"{DOWN}: its 100 input channels are turned in runs of 20: no Hadamard matrix is known for more together"
    assert store.header["notes"] == [said]
    raw = json.loads((store.path / "plan.json").read_text())
    assert next(item for item in raw["tensors"] if item["name"] == DOWN)["turn"] == {"size": 20, "seed": 5}
    assert "rounder" not in raw["config"]
    for name in linears:
        weight, dense = source.read(name), store.weight(name).dense()
        assert np.linalg.norm(dense - weight) < 0.2 * np.linalg.norm(weight)
    assert store.records["model.embed_tokens.weight"].turn is None


BAD = {
    "no matrix of that order": {"size": 50, "seed": 5},
    "no runs of it": {"size": 16, "seed": 5},
    "one channel": {"size": 1, "seed": 5},
    "nothing": {"size": 0, "seed": 5},
    "a seed below nothing": {"size": 20, "seed": -1},
    "a seed of more than 64 bits": {"size": 20, "seed": 2**64},
    "a word": {"size": "20", "seed": 5},
    "no seed": {"size": 20},
}


@pytest.mark.parametrize("name", BAD)
def test_a_turn_that_is_none_is_refused(store, tmp_path, name):
    raw = json.loads((store.path / "plan.json").read_text())
    next(item for item in raw["tensors"] if item["name"] == DOWN)["turn"] = BAD[name]
    with pytest.raises(StoreError, match=r"plan\.json"):
        QuantizedStore(changed(store, tmp_path, raw))


def test_only_a_target_that_turns_takes_such_a_store(store, tmp_path):
    raw = json.loads((store.path / "plan.json").read_text()) | {"target": "onnxruntime"}
    with pytest.raises(StoreError, match="onnxruntime turns no input of a linear"):
        target_of(QuantizedStore(changed(store, tmp_path, raw)))


def changed(store, folder, raw):
    out = shutil.copytree(store.path, folder / "changed")
    (out / "plan.json").write_text(json.dumps(raw, indent=1) + "\n")
    reseal(out / "plan.json")
    return out


def refuses(capsys, model, *options) -> str:
    capsys.readouterr()
    assert main(["quantize", str(model), "--out", str(model.parent / "none"), "--quiet", *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not (model.parent / "none").exists()
    return said


@pytest.mark.parametrize("target", ["llama.cpp", "gguf-adadim", "onnxruntime"])
def test_other_targets_name_what_comes_nearest(model, capsys, target):
    said = refuses(capsys, model, "--method", "higgs", "--target", target)
    assert f"target {target} turns no input" in said and "--grid iq4_nl" in said


ADADIM_OPTIONS = ("--target", "onnxruntime+adadim", "--method")
CONTRADICTIONS = {
    "a width without its levels": ("higgs", "--bits", "8"),
    "--float-columns 2": ("higgs", "--grid", "int", "--float-columns", "2"),
    "--rounder gptq: --method gptq-ada says already what rounds": ("gptq-ada", "--rounder", "gptq"),
    "--rounder nearest: --method omniquant": ("omniquant", "--rounder", "nearest"),
    "drop one of the two": ("higgs", "--target-size", "1MB"),
}


@pytest.mark.parametrize("said", CONTRADICTIONS)
def test_contradictions_are_refused_before_any_data(model, capsys, said):
    assert said in refuses(capsys, model, *ADADIM_OPTIONS, *CONTRADICTIONS[said])


def test_an_importance_matrix_says_nothing_of_turned_channels_that_gptq_could_use(model, capsys, tmp_path):
    """Nearest takes one, by each run's mean."""
    imatrix = tmp_path / "m.gguf"
    assert main(["imatrix", str(model), "--out", str(imatrix), "--calibration-tokens", "1024", "--quiet"]) == 0
    options = (*ADADIM_OPTIONS, "higgs", "--grid", "int", "--imatrix", str(imatrix))
    assert "for which the source must run over a text" in refuses(capsys, model, *options, "--rounder", "gptq")
    assert main(["quantize", str(model), "--out", str(tmp_path / "s"), "--quiet", *options]) == 0


def test_gptq_may_round_for_a_system(source, tmp_path):
    for word in ("nearest", "gptq"):
        config = config_of("higgs", grid="int", bits=2, rounder=word, calibration_tokens=2048, token_weight="unit")
        made = quantize_checkpoint(source, tmp_path / word, config, ADADIM)
        assert made.header["config"]["rounder"] == word
        assert (made.header["calibration"] is None) is (word == "nearest")
        used = {record.rounder for name, record in made.records.items() if "proj" in name}
        assert used == ({"rtn"} if word == "nearest" else {"gptq"})


def test_a_rule_turns_some_linears_of_a_site(source, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[rule]]\nmatch = "*.k_proj"\nmethod = "higgs"\ngrid = "int"\n')
    plans = {plan.name: plan for plan in build_plan(source.specs, config_of("rtn-ic", recipe=recipe), ADADIM)}
    turns = {name.split(".")[-2]: plan.turn for name, plan in plans.items() if "proj" in name}
    assert [name for name, turn in turns.items() if turn is not None] == ["k_proj"]


def test_what_is_not_turned_is_told():
    names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")
    specs = {name: TensorSpec(name, "F32", (64, 33)) for name in names}
    plan = build_plan(specs, config_of("higgs", grid="int"), ADADIM)[1]
    assert plan.turn is None and plan.note == "its input is not turned: no Hadamard matrix is known for runs of its 33 channels"
    stack = {**specs, names[1]: TensorSpec(names[1], "F32", (4, 64, 32))}
    plan = build_plan(stack, config_of("higgs", grid="int"), ADADIM)[1]
    assert plan.turn is None and plan.note == "its input is not turned: experts are multiplied by one node"


def test_a_turn_costs_time():
    turn = Rotation(5632, 0)
    plain, with_turn = (ADADIM.decode_cost(GRID, Axis.PER_OC, (2048, 5632), one) for one in (None, turn))
    assert plain < with_turn < 1.5 * plain


def test_the_levels_of_each_width():
    assert METHODS["higgs"].grids == {2: "lm2", 3: "lm3", 4: "lm4"}
    with pytest.raises(ConfigError, match="higgs has 2 "):
        build_plan(
            {
                "model.embed_tokens.weight": TensorSpec("model.embed_tokens.weight", "F32", (8, 32)),
                DOWN: TensorSpec(DOWN, "F32", (32, 32)),
            },
            config_of("higgs", bits=5),
            ADADIM,
        )
