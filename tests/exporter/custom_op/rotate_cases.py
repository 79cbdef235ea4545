"""RotateAdaDim nodes on random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.exporter.custom_op.cases import FLOAT, HALF, Case

OP = "RotateAdaDim"
CONSTANTS = ("signs", "left", "right")


@dataclass(frozen=True)
class Turn:
    """One node. ``left``, ``right``: order of Sylvester's part and of the random core that it multiplies; ``runs`` in a row."""

    left: tuple[int, int]
    right: tuple[int, int]
    runs: int = 1
    rows: tuple[int, ...] = (1,)
    dtype: str = "float32"
    constant: bool = True

    @property
    def tolerance(self) -> float:
        return HALF if self.dtype == "float16" else FLOAT


def sylvester(order: int) -> np.ndarray:
    matrix = np.ones((1, 1), np.int8)
    while len(matrix) < order:
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.int8), matrix)
    return matrix


def make_turn(spec: Turn, rng: np.random.Generator) -> Case:
    """Random signs, cores and activations."""
    left, right = (np.kron(sylvester(order), random_signs(rng, core, core)) for order, core in (spec.left, spec.right))
    size = len(left) * len(right)
    x = rng.normal(size=(*spec.rows, spec.runs * size)).astype(spec.dtype)
    return turn_of(x, random_signs(rng, x.shape[-1]), left, right, spec.constant)


def random_signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.choice(np.array([-1, 1], np.int8), shape)


def turn_of(x: np.ndarray, signs: np.ndarray, left: np.ndarray, right: np.ndarray, constant: bool) -> Case:
    z = (x.astype(np.float64) * signs).reshape(-1, len(left), len(right))
    y = left.astype(np.float64) @ z @ right.astype(np.float64).T / np.sqrt(len(left) * len(right))
    inputs = {"X": x, "signs": signs, "left": left, "right": right}
    return Case({}, inputs, y.reshape(x.shape), OP, CONSTANTS if constant else ())


# Sylvester's alone, cores left, right and on both sides, cores of sizes that are no multiple of four, one factor alone
FACTORS = [
    ((8, 1), (16, 1)),
    ((2, 12), (2, 12)),
    ((32, 1), (4, 12)),
    ((2, 20), (1, 28)),
    ((1, 3), (4, 5)),
    ((1, 1), (4, 12)),
    ((4, 12), (1, 1)),
    ((1, 1), (1, 1)),
    ((1, 44), (64, 1)),
    ((1, 7), (1, 2)),
]
ROWS = [(1,), (3,), (2, 9), (130,), ()]


def turns() -> list[Turn]:
    """Factors as constants and as inputs, both types; rows and runs take turns."""
    return [
        Turn(left, right, 1 + index % 3, ROWS[(index + turn) % len(ROWS)], dtype, constant)
        for index, (left, right) in enumerate(FACTORS)
        for turn, (dtype, constant) in enumerate([("float32", True), ("float16", True), ("float32", False)])
    ]
