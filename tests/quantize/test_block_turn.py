"""Turns in blocks: how one is found, that it leads back, and what becomes of moments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.block_turn import BlockTurn, FoundTurn, block_size
from quantize.steps.spread import flattened, loudest, peak, spread, spreading_turn, zigzag
from quantize.types import InputStats

SUM = 4e-6  # of float32 sums over a row, against its largest value


def sample_of(tokens: int, channels: int, seed: int = 0) -> np.ndarray:
    """Inputs of which two channels are loud, one of them in few tokens alone."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, channels)).astype(np.float32)
    x[:, channels // 3] *= 20
    x[:: max(1, tokens // 4), channels // 2] -= 60
    return x


@pytest.mark.parametrize(("channels", "size"), [(576, 64), (1536, 64), (96, 32), (48, 16), (100, 4), (33, 1)])
def test_blocks_are_the_largest_that_fit(channels, size):
    assert block_size(channels) == size
    assert FoundTurn(size).fits(channels) is (size >= 16)
    assert not FoundTurn(2 * size).fits(channels)


@settings(max_examples=20, deadline=None)
@given(size=st.sampled_from([16, 32, 64]), blocks=st.integers(1, 3), tokens=st.integers(1, 9), seed=st.integers(0, 99))
def test_what_is_found_is_orthogonal_and_never_louder(size, blocks, tokens, seed):
    x = sample_of(tokens, size * blocks, seed)
    turn = spreading_turn(x, size, seed)
    for matrix in (turn.first, turn.second):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-6)
    assert np.array_equal(np.sort(turn.order), np.arange(size * blocks))
    once = replace(turn, second=np.eye(size, dtype=np.float32)).apply(x)
    assert peak(x) * (1 + SUM) >= peak(once) and peak(once) * (1 + SUM) >= peak(turn.apply(x))
    again = spreading_turn(x, size, seed)
    assert all(np.array_equal(again.arrays[key], value) for key, value in turn.arrays.items())


def test_the_peak_falls_by_much():
    x = sample_of(200, 192)
    turn = spreading_turn(x, 64, 0)
    assert peak(turn.apply(x)) < 0.4 * peak(x)
    other = spreading_turn(x, 64, 1)
    assert not np.array_equal(turn.first, other.first)


def test_no_step_is_taken_where_none_helps():
    """A row that is as flat as can be."""
    x = np.full((3, 16), 2, np.float32)
    assert peak(x) == 0
    assert np.array_equal(spread(x, np.random.default_rng(0)), np.eye(16))


@pytest.mark.parametrize("channel", [0, 5, 31])
def test_an_outlier_is_spread_evenly(channel):
    """The released product of the paper's code leaves a channel with half of it and more."""
    turn = flattened(np.eye(32), channel, np.random.default_rng(0))
    x = np.zeros((1, 32), np.float32)
    x[0, channel] = -8
    assert loudest(x) == channel
    np.testing.assert_allclose(np.abs(x @ turn), 8 / np.sqrt(32), rtol=1e-6)
    others = np.abs(np.delete(turn, channel, 0))
    assert others.std() > 0.05  # which are led anywhere


def test_the_column_is_taken_and_not_the_row():
    x = np.zeros((40, 16), np.float32)
    x[7, 3], x[2, 9] = -5, 4
    assert loudest(x) == 3


def test_channels_are_dealt_to_and_fro():
    loudness = np.array([5, 1, 9, 3, 8, 2, 7, 6, 4, 0, 11, 10], np.float32)
    order = zigzag(loudness, 4)
    assert loudness[order].reshape(3, 4).tolist() == [[11, 6, 5, 0], [10, 7, 4, 1], [9, 8, 3, 2]]
    assert loudness[order].reshape(3, 4).sum(1).tolist() == [22, 22, 22]


@pytest.fixture(scope="module")
def turn() -> BlockTurn:
    return spreading_turn(sample_of(50, 96), 32, 3, "a.weight")


def test_it_is_the_product_of_two_matrices_and_an_order(turn):
    blocks = [np.kron(np.eye(3), matrix) for matrix in (turn.first, turn.second)]
    product = blocks[1] @ blocks[0][turn.order]
    np.testing.assert_allclose(turn.matrix(96), product, atol=1e-6)
    x = sample_of(7, 96, 1)
    np.testing.assert_allclose(turn.apply(x), x @ product.T, atol=SUM * np.abs(x).max())
    np.testing.assert_allclose(turn.back(turn.apply(x)), x, atol=SUM * np.abs(x).max())


def test_moments_are_those_of_the_turned_input(turn):
    x = sample_of(500, 96, 2)
    y = turn.apply(x)
    stats = InputStats(x.T @ x / 500, 500).turned(turn)
    np.testing.assert_allclose(stats.hessian, y.T @ y / 500, atol=1e-4 * np.abs(stats.hessian).max())
    assert np.array_equal(stats.hessian, stats.hessian.T)
    alone = np.linspace(1, 9, 96, dtype=np.float32)
    whole = turn.moment(np.diag(alone))
    np.testing.assert_allclose(turn.moment(alone), np.diag(whole), rtol=1e-4)


def test_arrays_lead_back(turn):
    again = BlockTurn.of_arrays(turn.arrays, turn.found)
    assert again.found == FoundTurn(32, "a.weight") and np.array_equal(again.order, turn.order)
    assert turn.to_json() == {"size": 32, "site": "a.weight"} and FoundTurn(32).to_json() == {"size": 32}


@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize("value", [np.nan, 0.5])
def test_what_turns_nothing_is_refused(turn, name, value):
    matrix = turn.arrays[name].copy()
    matrix[3, 4] += np.float32(value)
    with pytest.raises(ValueError, match=rf"{name}, which turns blocks of 32 channels, is .* from orthogonal"):
        BlockTurn.of_arrays({**turn.arrays, name: matrix}, turn.found)


def test_an_order_has_each_channel_once(turn):
    order = turn.arrays["order"].copy()
    order[0] = order[1]
    with pytest.raises(ValueError, match="order is none of 96 channels, each once"):
        BlockTurn.of_arrays({**turn.arrays, "order": order}, turn.found)
