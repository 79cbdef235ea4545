from __future__ import annotations

import numpy as np
import pytest
import torch

from runtime_checks.measure.divergence import compare, join

RNG = np.random.default_rng(7)
BASE = RNG.standard_normal((70, 33), dtype=np.float32) * 4
OTHER = BASE + RNG.standard_normal((70, 33), dtype=np.float32)
LABELS = RNG.integers(0, 33, 70)


def test_equals_torch():
    p, q = (torch.log_softmax(torch.from_numpy(item).double(), -1) for item in (BASE, OTHER))
    scores = compare(BASE, OTHER, LABELS)
    np.testing.assert_allclose(scores.kl, (p.exp() * (p - q)).sum(-1).numpy(), rtol=1e-9)
    np.testing.assert_allclose(scores.base_nll, -p.gather(-1, torch.from_numpy(LABELS)[:, None])[:, 0].numpy(), rtol=1e-9)
    np.testing.assert_allclose(scores.nll, -q.gather(-1, torch.from_numpy(LABELS)[:, None])[:, 0].numpy(), rtol=1e-9)
    np.testing.assert_array_equal(scores.agree, (p.argmax(-1) == q.argmax(-1)).numpy())
    top = p.topk(2, -1).values
    np.testing.assert_allclose(scores.margin, (top[:, 0] - top[:, 1]).numpy(), rtol=1e-9)


def test_the_same_model_is_no_distance_away():
    scores = compare(BASE, BASE, LABELS)
    assert scores.kl.max() == 0
    assert scores.agree.all()


def test_large_logits_do_not_overflow():
    scores = compare(BASE * 1e4, OTHER * 1e4, LABELS)
    assert np.isfinite(scores.kl).all() and np.isfinite(scores.nll).all()


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_nan_is_not_hidden():
    broken = OTHER.copy()
    broken[3, 5] = np.nan
    scores = compare(BASE, broken, LABELS)
    assert np.isnan(scores.kl[3]) and np.isfinite(np.delete(scores.kl, 3)).all()


def test_join_keeps_the_order():
    parts = [compare(BASE[part], OTHER[part], LABELS[part]) for part in (slice(0, 9), slice(9, 70))]
    np.testing.assert_array_equal(join(parts).kl, compare(BASE, OTHER, LABELS).kl)
