"""Inputs of few bits are the formula's; gradients of clips and of kurtosis are differences, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantize.source.fake_quant import SHARES, fake_quantize, kurtosis, rounding_errors

BITS = (2, 3, 4, 8)
CLIPS = np.array([-1.3, 0.9])
STEP = 1e-6  # of a difference
DTYPES = {"float64": (torch.float64, 1e-12), "float32": (torch.float32, 2e-6)}


def values(shape=(3, 5, 16), seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def by_formula(x, low, high, bits):
    s = (2**bits - 1) / (high - low)
    return np.rint((np.clip(x, low, high) - low) * s) / s + low


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", DTYPES)
def test_values_are_the_formulas(bits, kind):
    dtype, apart = DTYPES[kind]
    x = values()
    assert (x < CLIPS[0]).any() and (x > CLIPS[1]).any()
    out = fake_quantize(torch.tensor(x, dtype=dtype), torch.tensor(CLIPS, dtype=dtype), bits)
    np.testing.assert_allclose(out.numpy(), by_formula(x, *CLIPS, bits), atol=apart)
    assert len(out.unique()) <= 2**bits
    assert out.dtype == dtype


@pytest.mark.parametrize("bits", BITS)
def test_gradients_of_clips_are_differences(bits):
    """Of what is left where rounding passes on all of a change: x and a fixed share of the range, or a clip."""
    x, slope = values(), values(seed=1)
    u = (x - CLIPS[0]) / (CLIPS[1] - CLIPS[0]) * (2**bits - 1)
    share = (np.rint(u) - u) / (2**bits - 1)

    def loss(low, high):
        inside = x + share * (high - low)
        return (slope * np.where(x < CLIPS[0], low, np.where(x > CLIPS[1], high, inside))).sum()

    np.testing.assert_allclose(
        fake_quantize(torch.tensor(x), torch.tensor(CLIPS), bits).numpy()[(x > CLIPS[0]) & (x < CLIPS[1])],
        (x + share * (CLIPS[1] - CLIPS[0]))[(x > CLIPS[0]) & (x < CLIPS[1])],
    )
    expected = [
        (loss(CLIPS[0] + STEP, CLIPS[1]) - loss(CLIPS[0] - STEP, CLIPS[1])) / (2 * STEP),
        (loss(CLIPS[0], CLIPS[1] + STEP) - loss(CLIPS[0], CLIPS[1] - STEP)) / (2 * STEP),
    ]
    inputs, clips = torch.tensor(x, requires_grad=True), torch.tensor(CLIPS, requires_grad=True)
    (fake_quantize(inputs, clips, bits) * torch.tensor(slope)).sum().backward()
    np.testing.assert_allclose(clips.grad.numpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(inputs.grad.numpy(), np.where((x < CLIPS[0]) | (x > CLIPS[1]), 0, slope))


def test_kurtosis_is_the_fourth_moment_by_the_second_squared():
    x = values() ** 3 + 2
    centred = x - x.mean()
    assert float(kurtosis(torch.tensor(x))) == pytest.approx((centred**4).mean() / (centred**2).mean() ** 2, rel=1e-12)


def test_gradients_of_kurtosis_are_differences():
    x = torch.tensor(values((4, 6)) ** 3, requires_grad=True)
    assert torch.autograd.gradcheck(kurtosis, (x,), eps=STEP, atol=1e-6)


def test_what_is_the_same_everywhere_has_no_tails():
    x = torch.full((4, 4), 3.0, requires_grad=True)
    out = kurtosis(x)
    out.backward()
    assert float(out.detach()) == 0
    assert x.grad.isfinite().all()


def test_errors_of_shares_of_a_range():
    x, extremes = torch.tensor(values()), torch.tensor([-3.0, 3.5])
    found = rounding_errors(x, extremes.double(), 4)
    wanted = [((by_formula(x.numpy(), -3.0 * share, 3.5 * share, 4) - x.numpy()) ** 2).sum() for share in SHARES]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)
