"""The choice of what rounds an input: brute force on small cases, one choice an input, ranges never worse than the whole one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from exporter.targets import TARGETS
from quantize.activations import Activation
from quantize.block import Block, Kit
from quantize.checkpoint.row_order import RowOrders
from quantize.errors import CalibrationError
from quantize.grids import make_grid
from quantize.inputs import Inputs
from quantize.loss import activation_loss
from quantize.methods import ROUNDERS
from quantize.run.task import BlockTask, run_block
from quantize.steps.activations import SHARES, ChooseActivation, Option, affordable, fit_static
from quantize.steps.axis import ChooseAxis
from quantize.steps.round import Round
from quantize.store.record import TensorRecord
from quantize.store.schema import PLAN_DOOR, read_record
from quantize.turn import Rotation
from quantize.types import Axis, InputStats, RowOrder, TensorPlan
from quantize.weight import weight_of as decoded
from tests.cases import weight_of

KIT = Kit(TARGETS["onnxruntime"], RowOrders(None, RowOrder.HF), ROUNDERS, 1.5)
WORDS = ("a8-tensor", "a8-block32")
GRID = {Axis.PER_OC: make_grid("int", 8, 64)}
NAMES = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
)


def stats_of(sample: np.ndarray, rows: int = 24, seed: int = 0) -> InputStats:
    rng = np.random.default_rng(seed)
    tokens = rng.uniform(0.5, 1.5, len(sample)).astype(np.float32)
    inputs = Inputs(sample, tokens, 1.5 * sample.min(0), 1.5 * sample.max(0))  # of all tokens there is more
    return InputStats(sample.T @ sample / len(sample), len(sample), rng.uniform(0.1, 3, rows).astype(np.float32), inputs=inputs)


def even(tokens: int = 60, channels: int = 64) -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, (tokens, channels)).astype(np.float32)


def spiky(tokens: int = 60, channels: int = 64) -> np.ndarray:
    """Two tokens with one huge channel each, which no row of the weights reads."""
    x = even(tokens, channels)
    x[[7, 30], 5] = [900, -400]
    return x


def blind(weight: np.ndarray) -> np.ndarray:
    weight = weight.copy()
    weight[:, 5] = 0
    return weight


def block_of(words=WORDS, turns=(None, None, None), stats=None) -> Block:
    shared, own = stats or (stats_of(even()), stats_of(spiky(), seed=1))
    by_name = dict(zip(NAMES, (shared, shared, own), strict=True))
    plans = {
        name: TensorPlan(name, (24, 64), GRID, turn=turn, activations=words) for name, turn in zip(NAMES, turns, strict=True)
    }
    tensors = {name: weight_of((24, 64), index) for index, name in enumerate(NAMES)}
    return Block(plans, tensors, by_name, (NAMES[:2], NAMES[2:]))


def chosen(block: Block, kit: Kit = KIT) -> Block:
    block = ChooseAxis()(Round(ROUNDERS["rtn"])(block, NAMES, kit), NAMES, kit)
    return ChooseActivation()(block, NAMES, kit)


def test_one_choice_an_input_and_the_one_that_loses_least():
    done = chosen(block_of())
    first, second, third = (done.activations[name] for name in NAMES)
    assert first is second and third != first
    for site in (NAMES[:2], NAMES[2:]):
        told = {word: sum(done.activation_loss[name][word] for name in site) for word in WORDS}
        assert done.activations[site[0]].name == min(told, key=told.__getitem__)
    for name in NAMES:
        held, stats = done.activations[name], done.stats[name]
        weight = decoded(done.rounded[name].tensor)
        expected = activation_loss(weight, held.round(stats.inputs.sample), stats)
        assert done.activation_loss[name][held.name] == pytest.approx(expected, rel=1e-6)
        assert done.stored(name, done.rounded[name].tensor).parts[0].activation is held


def test_the_loss_is_that_of_the_outputs():
    """In float64, token by token, by definition."""
    stats, weight = stats_of(even()), weight_of((24, 64))
    rounded = Activation.fitted("a4-token", stats.inputs.sample).round(stats.inputs.sample)
    total = 0.0
    for x, y, token in zip(stats.inputs.sample, rounded, stats.inputs.weight, strict=True):
        moved = weight.astype(np.float64) @ (y - x).astype(np.float64)
        total += token * (stats.row_weight * moved**2).sum() / len(rounded)
    assert activation_loss(weight, rounded, stats) == pytest.approx(total, rel=1e-5)


def test_readers_of_one_input_may_be_rounded_differently():
    """Where a file's size has decided so."""
    block = block_of()
    words = dict(zip(NAMES, (("a8-tensor",), ("a8-block32",), ("a8-tensor",)), strict=True))
    plans = {name: replace(plan, activations=words[name]) for name, plan in block.plans.items()}
    done = chosen(replace(block, plans=plans))
    assert {name: held.name for name, held in done.activations.items()} == {name: word for name, (word,) in words.items()}


def test_a_turned_input_is_rounded_as_it_is_multiplied():
    turn = Rotation(64, 0)
    done = chosen(block_of(("a4-token",), (turn, None, turn)))
    stats = done.stats[NAMES[0]].turned(turn)
    held = done.activations[NAMES[0]]
    expected = activation_loss(decoded(done.rounded[NAMES[0]].tensor), held.round(stats.inputs.sample), stats)
    assert done.activation_loss[NAMES[0]] == {"a4-token": pytest.approx(expected, rel=1e-6)}
    assert held is not done.activations[NAMES[1]]  # which reads another value


@pytest.mark.parametrize("sample", [even(), spiky(), -np.abs(spiky()), np.zeros((9, 64), np.float32)])
@pytest.mark.parametrize("word", ["a8-tensor", "a4-tensor"])
def test_a_static_range_is_never_worse_than_the_whole_one(sample, word):
    stats, weights = stats_of(sample), {"w": blind(weight_of((24, 64)))}
    found = fit_static(word, stats.inputs, weights, {"w": stats})
    whole = Activation.fitted(word, np.stack([stats.inputs.low, stats.inputs.high]))
    loss = [activation_loss(weights["w"], held.round(sample), stats) for held in (found, whole)]
    assert loss[0] <= loss[1]
    if np.abs(sample).max() > 100:  # nobody reads the outliers
        assert loss[0] < 0.02 * loss[1] and found.scale < 0.1 * whole.scale


def test_a_static_range_is_near_the_best_of_all_pairs():
    sample = spiky() * np.linspace(0.2, 3, 60, dtype=np.float32)[:, None]
    stats, weight = stats_of(sample), weight_of((24, 64))
    lows, highs = sample.min(1), sample.max(1)
    ends = [(stats.inputs.low.min(), stats.inputs.high.max())]
    ends += [(np.quantile(lows, 1 - share, method="higher"), np.quantile(highs, share, method="lower")) for share in SHARES]
    pairs = [Activation.fitted("a6-tensor", np.array([[low, high]], np.float32)) for (low, _), (_, high) in product(ends, ends)]
    best = min(activation_loss(weight, held.round(sample), stats) for held in pairs)
    found = fit_static("a6-tensor", stats.inputs, {"w": weight}, {"w": stats})
    assert found in pairs
    assert activation_loss(weight, found.round(sample), stats) <= 1.05 * best


def options(seed: int, sites: int = 4) -> list[dict[str, Option]]:
    """The slower word takes a second more everywhere, so that what is taken back first is what buys least."""
    rng = np.random.default_rng(seed)
    return [{"slow": Option(0.0, 2.0), "fast": Option(float(rng.uniform()), 1.0)} for _ in range(sites)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("slowdown", [1.0, 1.3, 1.5, 2.0])
def test_the_slowdown_is_spent_as_brute_force_spends_it(seed, slowdown):
    sites = options(seed)
    found = affordable(sites, slowdown)

    def cost(words: tuple[str, ...]) -> tuple[float, float]:
        held = [site[word] for site, word in zip(sites, words, strict=True)]
        return sum(option.loss for option in held), sum(option.seconds for option in held)

    fitting = [words for words in product(("slow", "fast"), repeat=len(sites)) if cost(words)[1] <= slowdown * len(sites)]
    assert cost(tuple(found)) == min(map(cost, fitting))


def test_what_is_slower_and_no_better_is_never_taken():
    assert affordable([{"slow": Option(1.0, 2.0), "fast": Option(1.0, 1.0)}], 9.0) == ["fast"]


def test_blocks_cost_their_scales():
    """In a graph whose weights have a scale a row."""
    target = TARGETS["onnxruntime"]
    assert target.rounding_cost("a8-tensor", (24, 64)) == 0
    assert 0 < target.rounding_cost("a8-block32", (24, 64)) < target.rounding_cost("a8-block32", (24, 96))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (lambda inputs: None, "nothing was seen of its input"),
        (lambda inputs: replace(inputs, sample=inputs.sample[:0]), "there are no tokens"),
        (lambda inputs: replace(inputs, sample=inputs.sample * np.float32(np.inf)), "not finite"),
        (lambda inputs: replace(inputs, high=inputs.high * np.float32(np.inf)), "not finite"),
        (lambda inputs: replace(inputs, sample=inputs.sample * np.float32(1e30)), "overflows"),
    ],
)
def test_inputs_that_nothing_fits_are_refused_by_name(inputs, told):
    stats = stats_of(even())
    bad = replace(stats, inputs=inputs(stats.inputs))
    with np.errstate(all="ignore"), pytest.raises(CalibrationError, match=rf"^{NAMES[2]}: .*{told}"):
        chosen(block_of(("a8-tensor", "a4-token"), stats=(stats, bad)))


def test_a_store_says_what_was_chosen_and_what_every_word_costs():
    block = block_of()
    task = BlockTask(tuple(block.plans.values()), block.tensors, block.stats, block.sites)
    expected = chosen(block)
    for part, record in run_block(task, KIT).pieces:
        assert part.activation == record.activation == expected.activations[record.name]
        assert record.activation_loss == expected.activation_loss[record.name]
        told = TensorRecord.from_json(read_record(record.to_json(), PLAN_DOOR, "plan.json"))
        assert told == record


def test_nothing_is_chosen_where_nothing_is_planned():
    block = block_of(())
    task = BlockTask(tuple(block.plans.values()), block.tensors, block.stats, block.sites)
    for part, record in run_block(task, KIT).pieces:
        assert part.activation is None and "activation" not in " ".join(record.to_json())
