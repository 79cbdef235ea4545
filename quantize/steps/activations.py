"""How the inputs of a block's linears are rounded, where a target leaves that to the file: by the one loss, within the slowdown.

One choice an input, since one node rounds it for all that read it. A range that is known before anything runs is clipped
token-wise (Outlier Suppression, arXiv 2209.13325): its ends are the largest within a share of the tokens, the one that loses
least.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from quantize.activations import ACTIVATIONS, Activation
from quantize.block import Block, Kit, as_multiplied
from quantize.errors import CalibrationError
from quantize.inputs import Inputs
from quantize.loss import activation_loss
from quantize.turn import Turn
from quantize.types import F32, InputStats, Need
from quantize.weight import weight_of
from quantize.workers import in_threads

SHARES = (0.995, 0.99, 0.98, 0.96, 0.92, 0.85, 0.75, 0.5)  # of tokens whose ends a range may hold, beside the range of all


class Option(NamedTuple):
    """What one way to round an input costs all that read it: nats, then seconds of a row of activations."""

    loss: float
    seconds: float


class Tried(NamedTuple):
    """What rounds an input, and by name what that costs each linear that reads it, in nats a token."""

    held: Activation
    losses: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class _Site:
    """Linears that read the same value, by name: F32[OC, IC] as it is multiplied, what is known of it, and seconds of a row that
    any rounding takes; ``more``: what each word takes on top."""

    weights: Mapping[str, F32]
    stats: Mapping[str, InputStats]
    seconds: float
    more: Mapping[str, float]

    def tried(self) -> dict[str, Tried]:
        """By word. Raises CalibrationError."""
        return tried(self.more, self.weights, self.stats)


@dataclass(frozen=True)
class ChooseActivation:
    """Of the words that are planned for an input the one that loses least, within the slowdown."""

    needs: Need = Need.HESSIAN

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step. Raises CalibrationError for inputs of which no token was kept, or none that a scale fits."""
        sites = [_site(block, site, kit) for site in _sites(block, names)]
        found = in_threads(_Site.tried, sites)
        options = [
            {word: Option(sum(one.losses.values()), site.seconds + site.more[word]) for word, one in words.items()}
            for site, words in zip(sites, found, strict=True)
        ]
        activations, loss = dict(block.activations), dict(block.activation_loss)
        for site, words, word in zip(sites, found, affordable(options, kit.max_slowdown), strict=True):
            for name in site.weights:
                activations[name] = words[word].held
                loss[name] = {other: one.losses[name] for other, one in words.items()}
        return replace(block, activations=activations, activation_loss=loss)


def tried(words: Iterable[str], weights: Mapping[str, F32], stats: Mapping[str, InputStats]) -> dict[str, Tried]:
    """By word of ACTIVATIONS what rounds the input that F32[OC, IC] ``weights`` share, fitted to the sample in their ``stats``.

    Raises CalibrationError where no sample was kept, or none that a scale fits, and for losses that overflow.
    """
    name, first = next(iter(stats.items()))
    if first.inputs is None:
        told = "nothing was seen of its input, token by token, so nothing says how to round it"
        raise CalibrationError(f"{name}: {told}; quantize the original model, with a text")
    found = {}
    try:
        for word in words:
            if ACTIVATIONS[word].static:
                held = fit_static(word, first.inputs, weights, stats)
            else:
                held = Activation.fitted(word, first.inputs.sample)
            found[word] = Tried(held, losses(held, weights, stats))
        if not np.isfinite([loss for one in found.values() for loss in one.losses.values()]).all():
            raise ValueError("what rounding them costs overflows")
    except ValueError as error:
        raise CalibrationError(f"{name}: its inputs on the calibration text: {error}; does the source itself run?") from error
    return found


def losses(held: Activation, weights: Mapping[str, F32], stats: Mapping[str, InputStats]) -> dict[str, float]:
    """By name what rounding the sample of the input that F32[OC, IC] share costs each."""
    inputs = next(iter(stats.values())).inputs
    assert inputs is not None, "no sample of the input was kept"
    rounded = held.round(inputs.sample)
    with np.errstate(over="ignore"):
        return {name: activation_loss(weight, rounded, stats[name]) for name, weight in weights.items()}


def fit_static(name: str, inputs: Inputs, weights: Mapping[str, F32], stats: Mapping[str, InputStats]) -> Activation:
    """A static one of ACTIVATIONS for an input that ``weights`` F32[OC, IC] share, whose ``stats`` have its sample.

    The range of all tokens, or one that loses less on the sample: of shares of the tokens, for both ends, then for each alone.
    Raises ValueError for a sample without tokens, or with an infinity.
    """
    ACTIVATIONS[name].fit(inputs.sample)  # which refuses what is no sample
    ends = _ends(inputs)
    found = dict[tuple[int, int], tuple[float, Activation]]()

    def loss(pair: tuple[int, int]) -> float:
        if pair not in found:
            held = Activation.fitted(name, np.array([[ends[pair[0]][0], ends[pair[1]][1]]], np.float32))
            found[pair] = sum(losses(held, weights, stats).values()), held
        return found[pair][0]

    every = range(len(ends))
    low, high = min(((index, index) for index in every), key=loss)  # the first of equals, which is the widest
    low, high = min(((low, index) for index in every), key=loss)
    return found[min(((index, high) for index in every), key=loss)][1]


def _ends(inputs: Inputs) -> list[tuple[float, float]]:
    """Of all tokens, then of each share of the sample."""
    lows, highs = inputs.sample.min(1), inputs.sample.max(1)
    within = [
        (float(np.quantile(lows, 1 - share, method="higher")), float(np.quantile(highs, share, method="lower")))
        for share in SHARES
    ]
    return [(float(inputs.low.min()), float(inputs.high.max())), *within]


def affordable(options: Sequence[Mapping[str, Option]], max_slowdown: float) -> list[str]:
    """Of each site the word that loses least; then those that buy least per second are taken back, until a row of activations
    takes no more than ``max_slowdown`` times what it takes with the fastest words."""
    chosen = [min(words, key=words.__getitem__) for words in options]
    budget = max_slowdown * sum(min(option.seconds for option in words.values()) for words in options)
    while sum(words[word].seconds for words, word in zip(options, chosen, strict=True)) > budget:
        faster = [
            ((option.loss - words[word].loss) / (words[word].seconds - option.seconds), index, other)
            for index, (words, word) in enumerate(zip(options, chosen, strict=True))
            for other, option in words.items()
            if option.seconds < words[word].seconds
        ]
        if not faster:
            break
        _, index, other = min(faster)
        chosen[index] = other
    return chosen


def _sites(block: Block, names: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Linears that read the same value, turned or not, and whose plans leave its rounding open between the same words."""
    known = {name for site in block.sites for name in site}
    for site in (*block.sites, *((name,) for name in names if name not in known)):
        alike = dict[tuple[Turn | None, tuple[str, ...]], list[str]]()
        for name in site:
            if name in names and block.plans[name].activations:
                alike.setdefault((block.plans[name].turn, block.plans[name].activations), []).append(name)
        yield from map(tuple, alike.values())


def _site(block: Block, site: tuple[str, ...], kit: Kit) -> _Site:
    plans = [block.plans[name] for name in site]
    weights = {name: weight_of(block.rounded[name].tensor) for name in site}
    tensors = [block.rounded[name].tensor for name in site]
    pairs = list(zip(plans, tensors, strict=True))
    seconds = sum(kit.target.decode_cost(tensor.grid, tensor.axis, plan.shape, plan.turn) for plan, tensor in pairs)
    more = {word: sum(kit.target.rounding_cost(word, plan.shape) for plan in plans) for word in plans[0].activations}
    stats = as_multiplied({name: block.stats[name] for name in site}, block.plans)
    return _Site(weights, stats, seconds, more)
