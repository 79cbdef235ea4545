"""Systems that scale channels for their activations' sake: the model stays as it is, and the scales are their papers'."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exporter.targets import TARGETS
from exporter.writers import writer_of
from quantize import build_plan, open_checkpoint, quantize_checkpoint
from quantize.block import Block
from quantize.blocks import dequantize
from quantize.errors import ConfigError
from quantize.inputs import Inputs
from quantize.methods import METHODS, ROUNDERS
from quantize.steps.bound_peaks import THRESHOLDS, BoundPeaks
from quantize.steps.even_peaks import EvenPeaks
from quantize.steps.scale_channels import ScaleChannels
from quantize.steps.smooth import Smooth
from quantize.transforms.places import Place, ffn_places, norm_places, value_places
from quantize.transforms.scales import AWQ_POINTS, LARGEST, awq_factors
from quantize.types import Axis
from runtime_checks.checks.verify import verify
from tests.any_model import gguf_template, make_model
from tests.cases import config_of
from tests.quantize.test_transforms import GRID, applied, block_of, kit_of, logits_of, source
from tests.tiny import make_tiny_model

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


@pytest.mark.parametrize("kind", KINDS)
def test_peaks_are_even(source, kind):
    """All channels as loud as the one in the middle, but for the dead one, which may be scaled by so much alone."""
    block = seen_block(source)
    even = stepped(EvenPeaks((kind,)), block, source)
    for place in kind(block, block.fold_sites):
        before, after = ends(block, place)[0], ends(even, place)[0]
        middle, dead = np.median(before), before == 0
        assert dead.sum() <= 1 and before.max() > 1.4 * middle
        np.testing.assert_allclose(after[~dead], middle, rtol=1e-5)
        assert (after[dead] == 0).all()
        factor = next(one.read[place.readers[0]].factor for one in even.folds if place.readers[0] in one.read)
        assert factor.max() <= LARGEST


def test_nearly_dead_channels_grow_by_so_much_alone(source):
    block = seen_block(source)
    place = next(norm_places(block, block.fold_sites))
    inputs = block.stats[place.readers[0]].inputs
    quiet = inputs.moved(np.arange(len(inputs.low)), np.where(np.arange(len(inputs.low)) == 1, 1e-6, 1).astype(np.float32))
    block = replace(block, stats=block.stats | {name: replace(block.stats[name], inputs=quiet) for name in place.readers})
    even = stepped(EvenPeaks((norm_places,)), block, source)
    assert ends(even, place)[0][1] == pytest.approx(LARGEST * ends(block, place)[0][1])


def bound(block: Block, kind, source) -> list[tuple[Place, np.ndarray]]:
    """Each place of a kind, and the factors of what reads it."""
    found = stepped(BoundPeaks((kind,)), block, source)
    read = {name: basis.factor for fold in found.folds for name, basis in fold.read.items()}
    ones = {name: np.ones(value.shape[1], np.float32) for name, value in block.tensors.items() if value.ndim > 1}
    return [(place, read.get(place.readers[0], ones[place.readers[0]])) for place in kind(block, block.fold_sites)]


@pytest.mark.parametrize("kind", KINDS)
def test_peaks_are_bounded_by_the_first_threshold_that_loses_least(source, kind):
    """No channel is made louder; all that were above it are at the threshold. Searched by hand, block by block."""
    block = seen_block(source)
    for place, factor in bound(block, kind, source):
        peak = place.by_channel(np.maximum, block.stats[place.readers[0]].inputs.peak)
        factor = place.by_channel(np.maximum, factor)
        assert factor.max() == 1
        moved = factor < 1
        assert moved.any() and np.ptp((peak * factor)[moved]) < 1e-4 * peak.max()
        threshold = (peak * factor).max()
        tried = [peak.max() * (1 - step / THRESHOLDS) for step in range(THRESHOLDS)]
        losses = [loss_at(block, place, peak, one) for one in tried]
        assert threshold == pytest.approx(tried[int(np.argmin(losses))], rel=1e-4)


def loss_at(block: Block, place: Place, peak: np.ndarray, threshold: float) -> float:
    """In the source's basis: rounded inputs scaled back, and rounded weights."""
    factor = np.minimum(1, threshold / np.maximum(peak, 1e-30)).astype(np.float32)
    if place.values is not None:
        heads = factor.reshape(place.values.kv_heads, 1, -1)
        width = block.tensors[place.readers[0]].shape[1]
        factor = np.broadcast_to(heads, (len(heads), width // factor.size, heads.shape[2])).ravel()
    total = 0.0
    for name in place.readers:
        weight, stats = block.tensors[name], block.stats[name]
        inputs = stats.inputs
        low, high = (inputs.low * factor).min(), (inputs.high * factor).max()
        scale = np.float32((max(high, 0) - min(low, 0)) / 255)
        zero = np.rint(-min(low, 0) / scale)
        rounded = (np.clip(np.rint(inputs.sample * factor / scale) + zero, 0, 255) - zero) * scale / factor
        rows = np.ones(len(weight)) / len(weight) if stats.row_weight is None else stats.row_weight
        total += float((np.square((rounded - inputs.sample) @ weight.T) @ rows).mean())
        stored = dequantize(ROUNDERS["rtn"](name, weight / factor, GRID, Axis.PER_OC)) * factor
        error = weight - stored
        total += float(np.einsum("oi,ij,oj->o", error, stats.hessian, error) @ rows)
    return total


def test_of_thresholds_that_lose_alike_the_first_is_kept(source):
    """Which changes nothing: of weights that are all 0 nothing is lost under any."""
    block = seen_block(source)
    block = replace(block, tensors={name: value * np.float32(0) for name, value in block.tensors.items()})
    assert [BoundPeaks().factor(block, place, kit_of(source)) for place in places_of(block)] == [None] * len(places_of(block))


def test_awq_searches_powers_of_activations_alone():
    importance = np.array([4.0, 1.0, 0.25, 16.0], np.float32)
    found = list(awq_factors(importance, []))
    assert len(found) == AWQ_POINTS - 1
    for power, factor in enumerate(found, 1):
        logs = np.log(factor) + power / AWQ_POINTS * np.log(importance) / 2
        np.testing.assert_allclose(logs, logs[0], atol=1e-6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("m") / "m"))


@pytest.mark.parametrize("target", ["llama.cpp", "onnxruntime"])
@pytest.mark.parametrize("method", ["smoothquant", "awq", "outliertune", "outlier-suppression"])
def test_files_verify(method, target, model, tmp_path):
    """The store says where channels were scaled, and the file computes what the source does."""
    config = config_of(method, calibration_tokens=1024, bits=4)
    store = quantize_checkpoint(model, tmp_path / "store", config, TARGETS[target])
    (digits,) = store.header["transforms"].values()
    assert digits == "11"
    writer = writer_of(target)
    checks = verify(writer.write(store, tmp_path / ("m.gguf" if target == "llama.cpp" else "onnx")), model, store)
    assert checks and all(check.ok for check in checks)


def test_what_goes_with_no_scaled_channels_is_refused(model):
    with pytest.raises(ConfigError, match="method='awq': scales channels, of which none may be kept before; drop it, or "):
        build_plan(model.specs, config_of("awq", float_columns=2), TARGETS["onnxruntime"])


def test_scaled_blocks_of_a_template_do_not_learn(tmp_path):
    template = gguf_template(make_model(tmp_path / "model", "gemma3_text", "float32"), tmp_path)
    with pytest.raises(ConfigError, match="a block whose basis changes does not learn; give block_steps=0"):
        quantize_checkpoint(template, tmp_path / "store", config_of("awq", block_steps=2), TARGETS["llama.cpp"])
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("rule", "match"), [("gptq-oc", "*.o_proj"), ("quik", "*.gate_proj")])
def test_other_methods_in_the_same_block(rule, match, model, tmp_path):
    """They may round before, and keep parts: no channel between their linears and the others is scaled."""
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'[[rule]]\nmatch = "{match}"\nmethod = "{rule}"\n')
    config = config_of("outliertune", calibration_tokens=1024, bits=4, recipe=recipe, float_columns=None)
    store = quantize_checkpoint(model, tmp_path / "store", config, TARGETS["onnxruntime"])
    assert store.header["transforms"] == {"even-peaks": "11"}
    checks = verify(writer_of("onnxruntime").write(store, tmp_path / "onnx"), model, store)
    assert checks and all(check.ok for check in checks)
