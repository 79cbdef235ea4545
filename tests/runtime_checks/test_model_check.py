"""The whole-model checks: what they let pass and what they catch, one step of them at a time."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.statistics.calibration import tokenize
from runtime_checks.checks import model_check
from runtime_checks.checks.model_check import KL_TOLERANCE, LOGITS_TOLERANCE, TIE, check_model
from runtime_checks.runtimes.decoded import decoded_runner
from runtime_checks.runtimes.onnx_runner import OnnxRunner
from runtime_checks.runtimes.runners import greedy_error
from tests.runtime_checks.made import Made, make

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp("model"), "onnx-oc")


def test_levels_differ_and_only_the_exact_one_equals_torch(onnx):
    tokens = tokenize(model_check.TEXT, onnx.source)[:64]
    base = decoded_runner(onnx.file, onnx.source).logits(tokens)
    errors = {}
    for level in (0, None):
        runner = OnnxRunner(onnx.file, level)
        errors[level] = np.abs(runner.logits(tokens) - base).max() / np.abs(base).max()
    assert errors[0] < LOGITS_TOLERANCE < errors[None]


def test_decoding_over_the_cache_equals_the_prompt_pass(onnx):
    tokens = tokenize(model_check.TEXT, onnx.source)[:16]
    runner = OnnxRunner(onnx.file, 0)
    chosen = runner.greedy(tokens, 8)
    again = runner.logits(np.array([*tokens, *chosen], np.int64))[len(tokens) - 1 : -1].argmax(-1)
    assert chosen == again.tolist()
    assert chosen == decoded_runner(onnx.file, onnx.source).greedy(tokens, 8)


class FixedRunner:
    """Always the same logits."""

    def __init__(self, logits: list[float]) -> None:
        self._row = np.array(logits, np.float32)

    def logits(self, tokens):
        return np.tile(self._row, (len(tokens), 1))


@pytest.mark.parametrize(("chosen", "error"), [([0, 0, 0], 0.0), ([0, 1, 0], 1 / 3)])
def test_greedy_tokens_have_to_be_the_favourites(chosen, error):
    assert greedy_error(FixedRunner([3.0, 2.0, 0.0]), np.zeros(2, np.int64), chosen) == pytest.approx(error)


def test_a_tie_may_go_either_way():
    assert greedy_error(FixedRunner([3.0, 3.0 - 3e-5, 0.0]), np.zeros(2, np.int64), [1, 0]) < LOGITS_TOLERANCE


def distances(base, shipped) -> tuple[float, float]:
    return model_check._distances(base, shipped, np.zeros(len(base), np.int64))


def checked(path, base, shipped):
    return model_check._check_distribution(path, distances(base, shipped), None)


def test_what_static_scales_cost_is_no_error(tmp_path):
    """Half as much again as node by node, and no more: of one that is broken, too."""
    base = 3 * RNG.standard_normal((64, 8)).astype(np.float32)
    near, far = (distances(base, base + size * RNG.standard_normal(base.shape).astype(np.float32)) for size in (1.0, 9.0))
    broken = base.copy()
    broken[4, 2] = np.nan
    verdicts = {
        name: [check.ok for check in model_check._check_distribution(tmp_path, shipped, simulated)]
        for name, shipped, simulated in (
            ("as node by node", near, near),
            ("but for it", near, None),
            ("more", far, near),
            ("broken", distances(base, broken), near),
        )
    }
    assert verdicts["as node by node"] == [True, True]
    assert verdicts["but for it"] == verdicts["more"] == [False, False]
    assert not verdicts["broken"][0]


def test_ties_are_no_changed_favourites(tmp_path):
    """Two thirds of the positions are ties, all of which flip; the third is decided and stays."""
    base = RNG.standard_normal((31, 8)).astype(np.float32)
    base[:, :2] = 6.0
    base[::3, 0] += 2 * TIE
    shipped = base.copy()
    shipped[:, 1] += 0.01
    kl, changed = checked(tmp_path, base, shipped)
    assert kl.ok and changed.ok and changed.error == 0
    shipped[::3, 1] += 3 * TIE
    kl, changed = checked(tmp_path, base, shipped)
    assert changed.error == 1 and not changed.ok


def test_logits_that_are_nan_are_a_miss(tmp_path):
    base = RNG.standard_normal((9, 8)).astype(np.float32)
    broken = base.copy()
    broken[4, 2] = np.nan
    assert not model_check._check_logits(tmp_path, base, broken, 1.0).ok
    kl, _ = checked(tmp_path, base, broken)
    assert not kl.ok


def test_other_weights_than_the_runtime_has_are_a_miss(onnx, tmp_path, monkeypatch):
    """The reference decodes another file than the one that runs."""
    other = make(tmp_path, "onnx-adadim")
    monkeypatch.setattr(model_check, "decoded_runner", lambda path, source, context: decoded_runner(other.file, source))
    misses = {check.name for check in check_model(onnx.file, onnx.source) if not check.ok}
    assert "logits at accuracy level 0 = torch" in misses
    assert "mean KL to torch, as shipped" in misses


def test_the_text_is_long_enough_to_measure():
    assert len(model_check.TEXT) > 4 * model_check.TOKENS
    assert KL_TOLERANCE < TIE


@pytest.mark.parametrize(("noise", "ok"), [(0.10, True), (0.25, False)])
def test_three_times_the_divergence_of_rounded_activations_is_a_miss(tmp_path, noise, ok):
    """llama.cpp and MatMulNBits leave .004 to .006; .005 and .03 here."""
    base = RNG.standard_normal((64, 500)).astype(np.float32) * 3
    shipped = base + noise * RNG.standard_normal(base.shape).astype(np.float32)
    check = checked(tmp_path, base, shipped)[0]
    assert 0.6 < check.error / (noise**2 / 2) < 1.4 and check.ok is ok
