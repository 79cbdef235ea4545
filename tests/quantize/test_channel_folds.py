"""Systems that scale channels for their activations' sake: the model stays as it is, and the scales are their papers'."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantize.block import Block
from quantize.inputs import Inputs
from quantize.methods import METHODS
from quantize.steps.scale_channels import ScaleChannels
from quantize.steps.smooth import Smooth
from quantize.transforms.places import Place, ffn_places, norm_places, value_places
from quantize.transforms.scales import LARGEST
from tests.quantize.test_transforms import applied, block_of, kit_of, logits_of, source

__all__ = ["source"]  # a fixture
OF_METHODS = {name: step for name, method in METHODS.items() for step in method.steps if isinstance(step, ScaleChannels)}
STEPS = {**OF_METHODS, "smooth everywhere": Smooth(0.6)}
KINDS = (norm_places, value_places, ffn_places)
LOUD, DEAD = 40.0, 3  # how much louder every seventh channel is; which says nothing


def seen_block(source, index: int = 0) -> Block:
    """A block of ``source`` whose linears saw some tokens."""
    block = block_of(source, index)
    stats = dict(block.stats)
    for seed, place in enumerate(places_of(block)):
        x = np.random.default_rng(seed).standard_normal((64, len(stats[place.readers[0]].hessian))).astype(np.float32)
        x[:, ::7] *= LOUD
        x[:, DEAD] = 0
        seen = Inputs(x[::2], np.ones(32, np.float32), x.min(0), x.max(0))
        stats |= {name: replace(stats[name], inputs=seen) for name in place.readers}
    return replace(block, stats=stats)


def places_of(block: Block) -> list[Place]:
    return [place for kind in KINDS for place in kind(block, block.fold_sites)]


def stepped(step, block: Block, source, names=None) -> Block:
    return step(block, list(block.plans) if names is None else names, kit_of(source))


@pytest.mark.parametrize("name", STEPS)
def test_the_model_stays_as_it_is(source, name):
    before = [seen_block(source, index) for index in range(source.config.num_layers)]
    blocks = [stepped(STEPS[name], block, source) for block in before]
    assert all(applied(block) == [STEPS[name].name] and block.folds for block in blocks)
    expected = logits_of(source, [])
    np.testing.assert_allclose(logits_of(source, blocks), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for block, plain in zip(blocks, before, strict=True):
        for linear in block.plans:
            back = block.in_source_basis(linear, block.tensors[linear])
            np.testing.assert_allclose(back, plain.tensors[linear], rtol=1e-5)


@pytest.mark.parametrize("name", STEPS)
def test_what_another_method_rounds_is_left(source, name):
    """A place is scaled if all linears that make or read its channels are the method's."""
    block = seen_block(source)
    values = block.fold_sites.values
    own = {linear for linear in block.plans if linear != values.value.weight}
    left = stepped(STEPS[name], block, source, own)
    assert np.array_equal(left.tensors[values.value.weight], block.tensors[values.value.weight])
    assert np.array_equal(left.tensors[values.output], block.tensors[values.output])
    assert applied(left) == [STEPS[name].name]
    assert stepped(STEPS[name], block, source, ()) is block


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_shares_what_is_hard(source, alpha, kind):
    """Activation to alpha over weight to the rest, but for what all channels have in common."""
    block = seen_block(source)
    smooth = stepped(Smooth(alpha, (kind,)), block, source)
    for place in kind(block, block.fold_sites):
        (peak, weight), (now, weights) = ends(block, place), ends(smooth, place)
        np.testing.assert_allclose(now * weights, peak * weight, rtol=1e-4)
        seen = now > 0
        scale, wanted = peak[seen] / now[seen], (peak**alpha / weight ** (1 - alpha))[seen]
        inside = np.abs(np.log(scale)) < np.log(LARGEST) - 1e-3
        assert inside.mean() > 0.8
        np.testing.assert_allclose((scale / wanted)[inside], (scale / wanted)[inside][0], rtol=1e-4)


def ends(block: Block, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Largest activation and weight of each channel, by hand."""
    inputs = block.stats[place.readers[0]].inputs
    peak = np.maximum(-inputs.low, inputs.high)
    weight = np.abs(np.concatenate([block.tensors[name] for name in place.readers])).max(0)
    if place.values is None:
        return peak, weight
    heads = [one.reshape(place.values.kv_heads, -1, place.values.head_dim).max(1).ravel() for one in (peak, weight)]
    return heads[0], heads[1]
