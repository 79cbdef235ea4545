#!/usr/bin/env python3
"""The levels of the grids lm2 to lm4 and hg2, hg3 in quantize/grids/levels.py: those of least error for a normal distribution.

usage: make_levels.py

Lloyd's iterations, then the scale at which whole numbers within -63 to 63 lose least. Nothing is drawn at random: the error of
one dimension is the normal integral's, of two that of a fine even grid of points.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import NormalDist

import numpy as np

from quantize.types import Array

NORMAL = NormalDist()
MOST = 63  # a kernel of 8 bits looks up level + 64
SIDE, REACH = 240, 6.0  # points of the plane in each direction, and how far they lie from the middle
TURNS = (5**0.5 / 2 - 0.5, 3**0.5 - 1)  # between the points of a spiral, of a whole turn
STEADY = 1e-5  # a move that ends the iterations

Levels = tuple[tuple[int, ...], ...]


def lines(bits: int) -> tuple[Levels, float]:
    """Symmetric levels of one dimension, [1, 2**bits], and their error by the variance."""
    half = np.array([NORMAL.inv_cdf(0.5 + (i + 0.5) / (1 << bits)) for i in range(1 << bits >> 1)])
    while True:
        share, first = _cells(half)
        moved, half = np.abs(first / share - half).max(), first / share
        if moved < STEADY:
            break
    error, whole = min(_on_a_line(whole[0]) for whole in _whole(half[None], np.arange(4, MOST + 0.5, 0.05)))
    return ((*(-level for level in reversed(whole)), *whole),), error


def _on_a_line(whole: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
    """The error of positive levels and their mirror images at their best scale."""
    levels = np.array(whole, np.float64)
    scale = NORMAL.inv_cdf(1 - 0.25 / len(whole)) / levels[-1]
    for _ in range(100):
        share, first = _cells(levels * scale)
        scale = (levels * first).sum() / (np.square(levels) * share).sum()
    share, first = _cells(levels * scale)
    return float(1 - 2 * (2 * levels * scale * first - np.square(levels * scale) * share).sum()), whole


def _cells(half: Array) -> tuple[Array, Array]:
    """Of what lies nearest to each positive level: the share and the first moment of a normal distribution."""
    ends = [0.0, *(half[1:] + half[:-1]) / 2]
    below = np.array([*(NORMAL.cdf(end) for end in ends), 1.0])
    density = np.array([*(NORMAL.pdf(end) for end in ends), 0.0])
    return np.diff(below), -np.diff(density)


def pairs(bits: int) -> tuple[Levels, float]:
    """Points of the plane, [2, 4**bits], in rising order, and their error by the variance."""
    found = []
    for turn in TURNS:
        points = _settled(_spiral(4**bits, turn))
        found += [_in_the_plane(whole) for whole in _whole(points, np.arange(MOST - 6, MOST + 0.5, 0.5))]
    error, best = min(found)
    return tuple(zip(*sorted(zip(*best, strict=True)), strict=True)), error


def _spiral(count: int, turn: float) -> Array:
    """Points [2, count] of about the right density."""
    index = np.arange(count)
    radius, angle = 1.7 * np.sqrt(-np.log(1 - (index + 0.5) / count)), 2 * np.pi * turn * index
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)])


def _plane() -> tuple[Array, Array]:
    """Points [2, n] and the share of each."""
    line = (np.arange(SIDE) + 0.5) / SIDE * 2 * REACH - REACH
    x, y = (side.ravel() for side in np.meshgrid(line, line))
    share = np.exp(-(x * x + y * y) / 2)
    kept = share > 1e-12
    return np.stack([x, y])[:, kept], share[kept] / share.sum()


PLANE, SHARE = _plane()


def _nearest(points: Array) -> tuple[Array, Array]:
    """Of each point of the plane the nearest of ``points`` [2, n], and the squared distance."""
    far = np.square(PLANE[0][:, None] - points[0]) + np.square(PLANE[1][:, None] - points[1])
    return far.argmin(1), far.min(1)


def _settled(points: Array) -> Array:
    while True:
        nearest, _ = _nearest(points)
        share = np.bincount(nearest, SHARE, len(points[0]))
        means = np.stack([np.bincount(nearest, SHARE * side, len(points[0])) for side in PLANE]) / share
        moved, points = np.abs(means - points).max(), means
        if moved < STEADY:
            return points


def _in_the_plane(whole: Levels) -> tuple[float, Levels]:
    points = np.array(whole, np.float64)
    scale = 3 / np.abs(points).max()
    for _ in range(8):
        nearest, _ = _nearest(points * scale)
        own = points[:, nearest]
        scale = (SHARE * (own * PLANE).sum(0)).sum() / (SHARE * np.square(own).sum(0)).sum()
    return float((SHARE * _nearest(points * scale)[1]).sum() / 2), whole


def _whole(levels: Array, largest: Array) -> Iterable[Levels]:
    """Levels [dims, n] as whole numbers, the largest of which is about one of ``largest``: all that differ from one another."""
    found = dict[Levels, None]()
    for size in largest:
        whole = np.rint(levels * (size / np.abs(levels).max())).astype(int)
        if np.unique(whole, axis=1).shape == levels.shape and np.abs(whole).max() <= MOST:
            found[tuple(tuple(map(int, side)) for side in whole)] = None
    return found


def main() -> None:
    for name, (levels, error) in {
        **{f"lm{bits}": lines(bits) for bits in (2, 3, 4)},
        **{f"hg{bits}": pairs(bits) for bits in (2, 3)},
    }.items():
        print(f"{name}: {error:.5f} of the variance\n{levels}")


if __name__ == "__main__":
    main()
