"""Texts, sequences, the layer walk and its statistics, against a whole-model run in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantize.architecture.families import LINEARS
from quantize.checkpoint import open_checkpoint
from quantize.errors import CalibrationError
from quantize.model_config import EMBEDDING
from quantize.source import build_model, greedy, logits, measure_curvature, walk_blocks
from quantize.statistics.calibration import (
    SEQUENCE,
    choose_sequences,
    held_out_text,
    load_text,
    other_sequences,
    rank_poor,
    tokenize,
)
from quantize.types import InputStats
from tests.tiny import make_tiny_model

NAME = "model.layers.{}.{}.weight"


def test_builtin_text_and_its_held_out_end_do_not_overlap():
    text = load_text("builtin")
    assert len(text.text) > 300_000 and len(text.sha256) == 64
    assert held_out_text()[:2000] not in text.text


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read .*No such file"), (b"\xff\xfe\x00", "not UTF-8 at byte 0")]
)
def test_bad_texts(tmp_path, content, message):
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        load_text(str(path))


def test_sequences_are_drawn_by_seed_from_the_whole_text():
    ids = np.arange(20 * SEQUENCE + 7)
    first, again, other = (choose_sequences(ids, 4 * SEQUENCE, seed, "t") for seed in (0, 0, 1))
    assert first.shape == (4, SEQUENCE) and np.array_equal(first, again) and not np.array_equal(first, other)
    assert (np.diff(first, axis=1) == 1).all() and (first[:, 0] % SEQUENCE == 0).all()
    assert first.max() > 5 * SEQUENCE


@pytest.mark.parametrize(("count", "again"), [(5, 0), (16, 0), (18, 2), (20, 4), (30, 4)])
def test_other_sequences_are_those_that_calibration_leaves_out(count, again):
    """Until the text has no more; and never one twice."""
    ids = np.arange(20 * SEQUENCE + 7)
    taken, others = choose_sequences(ids, 4 * SEQUENCE, 3, "t")[:, 0], other_sequences(ids, 4 * SEQUENCE, 3, count)
    assert others.shape == (min(count, 20), SEQUENCE) and (np.diff(others, axis=1) == 1).all()
    assert len(np.intersect1d(taken, others[:, 0])) == again
    assert (np.diff(others[:, 0]) > 0).all()


def test_a_text_without_a_whole_sequence_has_no_others():
    assert other_sequences(np.arange(5), 100, 0, 3).shape == (0, SEQUENCE)


def test_a_text_too_short_says_how_long_it_is():
    with pytest.raises(CalibrationError, match=r"t: 1100 tokens, but 4 sequences of 512 are needed.*data.tokens=1024"):
        choose_sequences(np.arange(1100), 2048, 0, "t")
    with pytest.raises(CalibrationError, match="t: 5 tokens, but 1 sequences"):
        choose_sequences(np.arange(5), 100, 0, "t")


def test_coverage_names_rank_poor_sites_once():
    dead = np.diag([1.0, 0, 1, 1]).astype(np.float32)
    layer = "model.layers.3."
    held = {f"{layer}{name}.weight": InputStats(np.eye(8, dtype=np.float32), 4) for name in LINEARS}  # each has its own
    held |= {f"{layer}self_attn.o_proj.weight": InputStats(np.eye(8, dtype=np.float32), 100)}
    held |= {f"{layer}mlp.down_proj.weight": InputStats(dead, 100)}
    sites = [[f"{layer}{name}.weight" for name in names] for names in (LINEARS[:3], LINEARS[3:4], LINEARS[4:6], LINEARS[6:])]
    assert rank_poor(held, sites) == [
        f"{layer}self_attn.q_proj.weight: 4 tokens for 8 channels, 0 never active",
        f"{layer}mlp.gate_proj.weight: 4 tokens for 8 channels, 0 never active",
        f"{layer}mlp.down_proj.weight: 100 tokens for 4 channels, 1 never active",
    ]


@pytest.mark.parametrize("token_weight", ["unit", "curvature"])
def test_a_walked_layer_has_four_sites(token_weight, tmp_path):
    source = open_checkpoint(make_tiny_model(tmp_path))
    tokens = np.arange(16).reshape(1, 16)  # fewer than channels: every site is poor
    weights = measure_curvature(source, tokens, 0) if token_weight == "curvature" else token_weight
    poor = [line for run in walk_blocks(source, tokens, weights, 0) for line in rank_poor(run.stats, run.sites)]
    firsts = LINEARS[0], LINEARS[3], LINEARS[4], LINEARS[6]
    assert [line.partition(":")[0] for line in poor] == [f"model.layers.{i}.{site}.weight" for i in range(2) for site in firsts]


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "mistral"])
def source(request, tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def tokens(source):
    text = "def add(left, right): return 1984 " * 400
    ids = tokenize(text, source)
    return ids[: 6 * 64].reshape(6, 64)


def remember(seen, key):
    def hook(_module, args):
        seen[key] = args[0].reshape(-1, args[0].shape[-1]).numpy()

    return hook


def test_the_walk_sees_what_the_whole_model_sees(source, tokens):
    model = build_model(source.config, source.read, source.tied)
    seen = {}
    for index in range(source.config.num_layers):
        for site in ("self_attn.k_proj", "mlp.down_proj"):
            module = model.get_submodule(f"model.layers.{index}.{site}")
            module.register_forward_pre_hook(remember(seen, NAME.format(index, site)))
    logits(model, tokens)
    for token_weight in ("unit", "none"):
        for run in walk_blocks(source, tokens, token_weight, 0):
            for name in (NAME.format(run.index, site) for site in ("self_attn.k_proj", "mlp.down_proj")):
                x = seen[name] / (np.linalg.norm(seen[name], axis=1, keepdims=True) if token_weight == "unit" else 1)
                np.testing.assert_allclose(run.stats[name].hessian, x.T @ x / len(x), rtol=2e-3, atol=1e-5)
                assert run.stats[name].n_tokens == tokens.size


class OnlyRows:
    """A source whose whole embedding is too large to be read."""

    def __init__(self, source):
        self.config, self.path, self._source, self.rows = source.config, source.path, source, 0

    def read(self, name):
        assert name != EMBEDDING
        return self._source.read(name)

    def read_rows(self, name, start, stop):
        self.rows += stop - start
        return self._source.read_rows(name, start, stop)


def test_only_the_rows_of_the_tokens_are_read_of_the_embedding(source, tokens):
    careful = OnlyRows(source)
    run, plain = (next(walk_blocks(item, tokens, "none", 0)) for item in (careful, source))
    assert careful.rows == len(np.unique(tokens))
    name = NAME.format(0, "mlp.down_proj")
    assert np.array_equal(run.stats[name].hessian, plain.stats[name].hessian)


def test_a_token_without_a_row_is_refused(source, tokens):
    with pytest.raises(CalibrationError, match="token 320 has no row in the embedding of 320; the tokenizer is another model's"):
        next(walk_blocks(source, np.where(tokens == tokens[0, 0], 320, tokens), "none", 0))


def test_scope_losses(source, tokens):
    """Zero for the weight itself; the layer's own squared error for down; siblings count once they are committed."""
    run = next(walk_blocks(source, tokens, "none", 4))
    q, o, down = (NAME.format(0, site) for site in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"))
    weight, changed = source.read(down), source.read(down) * np.float32(1.01)
    assert run.scope_loss(down, [weight]) == [0.0]
    error = weight - changed
    four = next(walk_blocks(source, tokens[:4], "none", 0)).stats[down]
    expected = float(np.sum(error @ four.hessian * error) / len(error))
    assert run.scope_loss(down, [changed])[0] == pytest.approx(expected, rel=1e-3)
    before = run.scope_loss(q, [source.read(q) * np.float32(0.5)])
    run.commit(o, np.zeros_like(source.read(o)))
    after = run.scope_loss(q, [source.read(q) * np.float32(0.5)])
    assert before[0] > 0 and after == [0.0]  # with o silenced, no change of q reaches the attention's output


def test_greedy_follows_the_logits(source, tokens):
    model = build_model(source.config, source.read, source.tied)
    prompt, expected = tokens[0, :16], list[int]()
    for _ in range(6):
        row = logits(model, np.concatenate([prompt, np.array(expected, np.int64)])[None])[0, -1]
        expected.append(int(row.argmax()))
    assert greedy(model, prompt, 6) == expected
    assert torch.is_inference_mode_enabled() is False
