"""Decoder blocks of any model in torch, called with what the model calls them with."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.gguf.file import write_gguf
from exporter.targets import TARGETS
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.row_order import RowOrders
from quantize.effort import effort_for
from quantize.errors import ConfigError
from quantize.fold import Basis, Fold
from quantize.run.pipeline import quantize_checkpoint
from quantize.source import block_students, measure_curvature, walk_blocks
from quantize.steps.descent import put_folded
from runtime_checks.checks.verify import verify
from runtime_checks.measure.evaluate import EvalOptions, evaluate
from tests.any_model import order_of_rows
from tests.cases import config_of
from tests.quantize.test_transforms import block_of
from tests.tiny import TEXT

LLAMA = TARGETS["llama.cpp"]
TOKENS = np.random.default_rng(0).integers(3, 400, (4, 48))
EVERY = np.arange(4)
RNG = np.random.default_rng(1)


def test_they_are_those_of_a_family(kept):
    """The same losses and slopes as of blocks that are known by name; rows of q and k lie in another order there."""
    theirs = kept.gguf("llama")
    ours = open_checkpoint(theirs.twin)
    pairs = zip(walk_blocks(ours, TOKENS, "unit", 0, taught=True), block_students(theirs, TOKENS, "unit"), strict=True)
    for run, student in pairs:
        known = run.student
        changed = {name: ours.read(name) + RNG.standard_normal(ours.specs[name].shape).astype("f4") / 32 for name in run.stats}
        orders = {name: order_of_rows(ours.read(name), theirs.read(name)) for name in changed}
        for name, weight in changed.items():
            known.put(name, weight, learns=True)
            student.put(name, weight[orders[name]], learns=True)
        assert student.loss(EVERY) == pytest.approx(known.loss(EVERY), rel=1e-4) and known.loss(EVERY) > 1e-4
        slopes, found = known.gradients(EVERY[:2]), student.gradients(EVERY[:2])
        for name, rows in orders.items():
            np.testing.assert_allclose(found[name], slopes[name][rows], rtol=1e-3, atol=1e-3 * np.abs(slopes[name]).max())
        assert student.sequences == known.sequences == 4


@pytest.mark.parametrize("model_type", ["gemma3_text", "lfm2", "falcon_h1", "gpt2", "phi3"])
def test_unchanged_they_give_what_the_model_gives(kept, model_type):
    """Windows in some layers, convolutions, blocks that give tuples; a change in one is felt in the next."""
    source = kept.gguf(model_type)
    curvature = measure_curvature(source, TOKENS, 0)
    sizes = {index: (len(tokens), len(channels)) for index, (tokens, channels) in curvature.blocks.items()}
    assert sizes == dict.fromkeys(range(2), (TOKENS.size, 64))
    losses = []
    for index, student in enumerate(block_students(source, TOKENS, curvature)):
        losses.append(student.loss(EVERY))
        if index == 0:
            name = [one.weight for one in source.products if ".layers.0." in one.weight][-1]
            student.put(name, RNG.standard_normal(source.specs[name].shape).astype("f4") / 8, learns=False)
            assert student.loss(EVERY) > 1e-6
    assert losses[0] == 0 and losses[1] > 1e-6


def test_what_is_learned_is_nearer(kept, tmp_path):
    source = kept.gguf("gemma3_text")
    assert effort_for("best", source).around.block_steps == 30
    data = {"calibration_tokens": 8192, "grid": "q4_0"}
    plain = quantize_checkpoint(source, tmp_path / "plain", config_of("gptq-oc", **data), LLAMA)
    learned = quantize_checkpoint(source, tmp_path / "learned", config_of("gptq-oc", block_steps=20, **data), LLAMA)
    before, after = (np.array(learned.header["blocks"][key]) for key in ("before", "after"))
    assert (after <= before).all() and after.sum() < 0.98 * before.sum()
    files = [write_gguf(store, tmp_path / f"{store.path.name}.gguf") for store in (plain, learned)]
    near = [evaluate(file, source, TEXT, EvalOptions(64))["kld"] for file in files]
    assert near[1] < 1.05 * near[0]


def test_norms_that_no_module_is_known_of_are_not_tweaked(kept, tmp_path):
    source = kept.gguf("gemma3_text")
    with pytest.raises(ConfigError, match=r"method='norm-tweaking': .*the norms of gemma3 are not known by name"):
        quantize_checkpoint(source, tmp_path / "store", config_of("norm-tweaking", calibration_tokens=8192), LLAMA)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("model_type", ["gemma3_text", "phi3"])
def test_a_folded_block_is_put_though_torch_has_no_norms_by_name(kept, model_type):
    """What is stored makes no difference in the source's model: what reads a norm is put as the source's norm needs it."""
    source = kept.gguf(model_type)
    student = next(block_students(source, TOKENS, "unit"))
    block = block_of(source, 0)
    norms = {norm: block.tensors[norm] for norm in block.fold_sites.norms}
    assert len(norms) == 2 and not any(student.holds(norm) for norm in norms)
    for norm, linears in block.fold_sites.norms.items():
        basis = Basis.scaled(RNG.uniform(0.5, 2, len(norms[norm])).astype("f4"), block.fold_sites.gain_offset)
        block = block.folded(Fold({norm: basis}, dict.fromkeys(linears, basis)))
    orders = RowOrders(source.config, LLAMA.row_order)
    put_folded(student, None, block.tensors, norms, orders)
    assert student.loss(EVERY) > 1e-3
    put_folded(student, block.fold_sites, block.tensors, norms, orders)
    assert student.loss(EVERY) < 1e-9


def test_scales_of_channels_are_learned_of_any_architecture(kept, tmp_path):
    """And folded into the runtime's own file."""
    source = kept.gguf("gemma3_text")
    config = config_of("omniquant", grid="q4_1", block_steps=10, calibration_tokens=6144)
    store = quantize_checkpoint(source, tmp_path / "store", config, LLAMA)
    assert "1" in store.header["transforms"]["channel-scales"]
    checks = verify(write_gguf(store, tmp_path / "file.gguf"), source, store)
    assert checks and all(check.ok for check in checks)
