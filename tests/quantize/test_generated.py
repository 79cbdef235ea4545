"""A text that the source writes itself: what it predicts, the same each time; refused where nothing can be written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exporter.cli.main import main
from quantize import open_checkpoint
from quantize.checkpoint.gguf_tensors import open_language_model
from quantize.config import GENERATED, DataSpec
from quantize.errors import CalibrationError, ConfigError
from quantize.source import build_model, generate, logits
from quantize.statistics import generated
from quantize.statistics.by_template import check_writes
from quantize.statistics.calibration import SEQUENCE, calibration_data, other_data, planned_coverage, token_texts
from tests.tiny import make_tiny_model

DATA = DataSpec(GENERATED, 2 * SEQUENCE)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("writes") / "model"))


def test_each_token_is_drawn_from_what_the_model_predicts(source):
    """By a forward pass over the whole, without any memory of keys and values."""
    numbers = np.random.default_rng(0).random((3, 12), np.float32)
    found = generate(source, np.array([[1, 7], [1, 9], [1, 7]]), numbers, np.zeros((1, 4), np.int64))
    assert found.shape == (3, 14) and found[:, :2].tolist() == [[1, 7], [1, 9], [1, 7]]
    predicted = logits(build_model(source.config, source.read, source.tied), found[:, :-1], 1)
    p = np.exp(predicted - predicted.max(-1, keepdims=True))
    upto = np.cumsum(p / p.sum(-1, keepdims=True), axis=-1)
    drawn = np.take_along_axis(upto, found[:, 2:, None], -1)[..., 0]
    before = drawn - np.take_along_axis(p / p.sum(-1, keepdims=True), found[:, 2:, None], -1)[..., 0]
    assert (numbers <= drawn + 1e-5).all() and (numbers >= before - 1e-5).all()
    assert len({tuple(row[2:]) for row in found.tolist()}) == 3


def test_a_seed_draws_the_same_text_and_more_of_it_another(source):
    tokens, coverage = calibration_data(DATA, source)
    again, _ = calibration_data(DATA, source)
    other, _ = calibration_data(replace(DATA, seed=1), source)
    assert tokens.shape == (2, SEQUENCE) and np.array_equal(tokens, again) and not np.array_equal(tokens, other)
    more = other_data(DATA, source, 1)
    assert more.shape == (1, SEQUENCE) and not (more == tokens).all(1).any()
    planned = planned_coverage(DATA)
    assert replace(planned, sha256=coverage.sha256) == coverage and len(planned.sha256) == len(coverage.sha256) == 64


def test_a_sequence_begins_with_a_word(source):
    words = generated.begin_words(np.arange(source.config.vocab_size), source)
    assert len(words) >= generated.FEWEST
    assert all(text.strip().isalpha() for text in token_texts(words.tolist(), source))
    tokens, _ = calibration_data(DATA, source)
    assert set(tokens[:, :2].ravel().tolist()) & set(generated.begin_words(tokens.ravel(), source).tolist())


def test_a_tokenizer_of_too_few_words_is_refused(source):
    with pytest.raises(CalibrationError, match=r"1 of the 2 tokens .* are words, but 8 are needed to begin sequences with; give"):
        word = next(iter(generated.begin_words(np.arange(source.config.vocab_size), source)))
        generated.begin_words(np.array([word, 0]), source)


def test_a_template_writes_where_torch_runs_it(kept):
    source = kept.gguf("smollm3")
    tokens, _ = calibration_data(replace(DATA, tokens=SEQUENCE), source)  # in the memory of one block
    assert tokens.shape == (1, SEQUENCE)
    alone = type(source)(source.path, *open_language_model(source.path))
    with pytest.raises(ConfigError, match=r"text='generated': .* runs in llama\.cpp, which writes no text here; give"):
        check_writes(alone, DATA)


def test_an_importance_matrix_stands_in_for_it(source, tmp_path, capsys):
    args = ("quantize", source.path, "--out", tmp_path / "s", "--method", "rtn-oc", "--calibration", GENERATED, "--imatrix", "x")
    assert main([*map(str, args), "--quiet"]) == 2
    assert (
        "--calibration generated: is a text for the source to run over, which --imatrix stands in for" in capsys.readouterr().err
    )
