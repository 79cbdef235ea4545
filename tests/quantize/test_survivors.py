"""What one changed line of core code once got past all other tests: each of these fails for one such change."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from exporter.targets import TARGETS
from quantize import quantize_checkpoint
from quantize.blocks import dequantize
from quantize.checkpoint import open_checkpoint
from quantize.grids import make_grid
from quantize.loss import output_loss
from quantize.methods import ROUNDERS
from quantize.model_config import EMBEDDING, HEAD
from quantize.rounding import Rounder
from quantize.rounding.gptq import gptq
from quantize.rounding.polish import polish
from quantize.rounding.rtn import rtn
from quantize.source import build_model, curvature, measure_curvature, walk_blocks
from quantize.source.walk import BATCH
from quantize.steps.descent import JUDGES, Schedule, descend
from quantize.steps.round import Linear
from quantize.types import Axis, Curvature
from tests.cases import config_of, stats_of, weight_of
from tests.tiny import make_tiny_model

GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("survivors") / "model", tied=True))


def test_every_batch_is_weighed_by_its_own_tokens(source):
    """Walked in two batches, tokens of one of them free: what is left is what the other gives alone."""
    tokens = np.random.default_rng(1).integers(0, 320, (2 * BATCH, 12))
    measured, half = measure_curvature(source, tokens, 0), BATCH * 12

    def hessian(batches, *weights: float):
        tensor = np.repeat(np.array(weights, np.float32), half)
        given = Curvature(dict.fromkeys(measured.tokens, tensor), measured.rows, measured.tables)
        return next(iter(walk_blocks(source, batches, given, 0))).stats[GATE].hessian

    for place, weights in enumerate([(1, 0), (0, 1)]):
        alone = hessian(tokens[place * BATCH :][:BATCH], 1)
        np.testing.assert_allclose(hessian(tokens, *weights), alone / 2, rtol=1e-4, atol=1e-6)


class Recording:
    """A student that is never any better, and remembers by which sequences it was judged and from which it learned."""

    sequences = 3 * JUDGES

    def __init__(self) -> None:
        self.judged, self.learned = set[int](), set[int]()

    def put(self, name, weight, learns):
        """Nothing is kept."""

    def loss(self, sequences):
        self.judged |= set(sequences.tolist())
        return 1.0

    def gradients(self, sequences):
        self.learned |= set(sequences.tolist())
        return {}


def test_no_step_learns_from_a_sequence_that_judges():
    student = Recording()
    descend([], student, None, Schedule("t", steps=3 * JUDGES, sequences=2, span=4, seed=0, rate=lambda _: 1.0))
    assert len(student.judged) == JUDGES and not student.judged & student.learned
    assert student.judged | student.learned == set(range(student.sequences))


def test_labels_are_drawn_by_the_seed_alone(source, tmp_path):
    """In another process, whose torch was seeded with something else; within one the last result is remembered."""
    code = (
        "import sys, numpy as np, torch; torch.manual_seed(int(sys.argv[2]))\n"
        "from pathlib import Path; from quantize import open_checkpoint; from quantize.source import measure_curvature\n"
        "source = open_checkpoint(Path(sys.argv[1]))\n"
        "found = measure_curvature(source, np.arange(96).reshape(4, 24), int(sys.argv[3]))\n"
        "print(sum(float(row.sum()) for row in found.rows.values()))"
    )

    def total(torch_seed: int, seed: int) -> str:
        words = [sys.executable, "-c", code, str(source.path), str(torch_seed), str(seed)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert total(1, 5) == total(2, 5) != total(1, 6)


@pytest.mark.parametrize("method", ["search-oc", "gptq-oc"])
def test_a_table_of_several_chunks_is_weighed_row_by_row(tmp_path, method):
    """The embedding takes more than one chunk: its statistics' row weights are cut as its rows are."""
    source = open_checkpoint(make_tiny_model(tmp_path / "m", vocab=1600, hidden=32, ffn=32, heads=2, kv_heads=2, layers=1))
    rows, step = source.specs[EMBEDDING].shape[0], 4 * (32 + 32)
    assert rows > step
    config = config_of(method, calibration_tokens=1024, embedding="q4_0")
    store = quantize_checkpoint(source, tmp_path / "s", config, TARGETS["llama.cpp"])
    assert store.read(EMBEDDING).shape == source.specs[EMBEDDING].shape


def test_a_tied_table_is_embedding_and_head_by_their_shares(tmp_path):
    """What it costs where it looks up, and where it multiplies, as the two tables of the same model untied."""
    tokens = np.random.default_rng(2).integers(0, 40, (6, 24))  # of 320: most rows are never looked up
    tied = open_checkpoint(make_tiny_model(tmp_path / "tied", tied=True))
    embedding = measure_curvature(tied, tokens, 0).tables[EMBEDDING]
    assert HEAD not in measure_curvature(tied, tokens, 0).tables
    model = build_model(tied.config, tied.read, tied.tied)
    head = model.lm_head.weight.detach()
    tables = curvature._Tables(*head.shape)

    def multiply(x):
        return curvature.Applied(x @ head.T, x, lambda slope: slope @ head)

    generator = torch.Generator().manual_seed(0)
    for row in tokens:
        ids = torch.from_numpy(row[None])
        embedded = model.model.embed_tokens(ids).requires_grad_()
        last = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        last.backward(tables.add_head(last.detach(), multiply, generator))
        tables.add_embedding(ids, embedded.grad)
    apart = tables.stats(tied=False)
    looked_up, multiplied = apart[EMBEDDING], apart[HEAD]
    share = looked_up.row_weight.sum() / (looked_up.row_weight.sum() + multiplied.row_weight.sum())
    expected = multiplied.hessian * (1 - share) + np.diag(looked_up.hessian) * share
    np.testing.assert_allclose(embedding.hessian, expected, rtol=1e-4, atol=1e-6)
    assert abs(share - 0.5) > 0.02, "the shares are too alike to be told apart"


def uneven_rows():
    """A weight of whose rows a few in each group matter, their statistics, and a coarse grid."""
    row_weight = np.where(np.arange(64) % 32 < 4, np.float32(100), np.float32(0.01))
    return weight_of((64, 96)), replace(stats_of(96), row_weight=row_weight), make_grid("int", 3, 32)


@pytest.mark.parametrize("improve", [(gptq,), (gptq, polish)], ids=["gptq", "polished"])
def test_groups_along_output_channels_know_what_each_row_is_worth(improve):
    weight, stats, grid = uneven_rows()
    blind = replace(stats, row_weight=None)
    rounder = Rounder("some", improve=improve)
    knowing, unknowing = (dequantize(rounder("w", weight, grid, Axis.PER_IC, seen)) for seen in (stats, blind))
    assert output_loss(weight, knowing, stats) < 0.7 * output_loss(weight, unknowing, stats)


def test_polish_alone_weighs_rows():
    weight, stats, grid = uneven_rows()
    tensor = gptq(rtn("w", weight, grid, Axis.PER_IC, stats), weight, stats)
    knowing, unknowing = (polish(tensor, weight, seen) for seen in (stats, replace(stats, row_weight=None)))
    assert output_loss(weight, dequantize(knowing), stats) < 0.95 * output_loss(weight, dequantize(unknowing), stats)


def test_round_to_nearest_wins_where_it_loses_less():
    weight, stats, grid = weight_of((32, 64)), stats_of(64), make_grid("q4_0", 4, 32)
    linear = Linear("w", weight, stats, {Axis.PER_OC: grid}, ROUNDERS["gptq"])
    tried = linear.tried(Axis.PER_OC)
    assert linear.best(tried).rounder == "gptq"
    spoilt = replace(tried["gptq"], codes=15 - tried["gptq"].codes)
    best = linear.best({"gptq": spoilt, "rtn": tried["rtn"]})
    assert best.rounder == "rtn" and best.tensor is tried["rtn"]
    assert best.loss == pytest.approx(output_loss(weight, dequantize(best.tensor), stats))
