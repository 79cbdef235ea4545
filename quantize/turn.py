"""A turn of a linear's input channels: what is stored of a weight is W RT, and the graph gives it R x instead of x.

::

    R = (left (x) right) diag(signs) / sqrt(size)        on each run of ``size`` channels; left, right: Hadamard matrices

An outlier channel is spread over all channels of its run, and every channel has the same mean square: weights look like samples
of a normal distribution. Signs are bits of SHAKE-256, which no version of any library moves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
LEAST = 16  # channels of a run: fewer spread nothing

# By order that of the smallest multiple of its odd part which Paley's constructions have, and the prime that it is made of:
# order - 1, which leaves 3 divided by 4 (Paley I), or order / 2 - 1, which leaves 1 (Paley II).
PALEY = {
    12: 11,
    20: 19,
    28: 13,
    36: 17,
    44: 43,
    60: 59,
    68: 67,
    76: 37,
    84: 83,
    104: 103,
    108: 107,
    124: 61,
    140: 139,
    148: 73,
}


class Turn(Protocol):
    """An orthogonal R of a linear's input channels. One that is equal to another is the same."""

    @property
    def per_channel(self) -> int:
        """Multiplications that it takes for each channel of an input."""

    def to_json(self) -> dict[str, Any]:
        """As a store and a file say it."""

    def apply(self, x: F32) -> F32:
        """R x of every F32[..., channels]: of weights F32[OC, IC] it is W RT."""

    def back(self, y: F32) -> F32:
        """RT y, the inverse of ``apply``."""

    def matrix(self, channels: int) -> F32:
        """R, F32[channels, channels]."""

    def moment(self, hessian: F32) -> F32:
        """R H RT of the second moment F32[channels, channels] of an input; of its diagonal F32[channels] a diagonal."""


@dataclass(frozen=True)
class Rotation:
    """``size`` channels are turned together, each run of so many by its own signs, which follow from ``seed``."""

    size: int
    seed: int

    @classmethod
    def of(cls, channels: int, seed: int) -> Rotation | None:
        """All of so many input channels together where there is a Hadamard matrix for them, else the largest runs that divide
        them; None where these have less than LEAST channels."""
        size = largest_run(channels)
        return cls(size, seed) if size >= LEAST else None

    def to_json(self) -> dict[str, int]:
        """As a store and a file say it."""
        return {"size": self.size, "seed": self.seed}

    @property
    def per_channel(self) -> int:
        """See Turn."""
        return sum(self._orders)

    @property
    def left(self) -> I8:
        """I8[a, a] of 1 and -1; a * b is the size."""
        return hadamard(self._orders[0])

    @property
    def right(self) -> I8:
        """I8[b, b] of 1 and -1."""
        return hadamard(self._orders[1])

    @property
    def _orders(self) -> tuple[int, int]:
        found = orders_of(self.size)
        assert found is not None, f"no Hadamard matrix of order {self.size}"
        return found

    def signs(self, channels: int) -> I8:
        """I8[channels] of 1 and -1."""
        stream = hashlib.shake_256(f"adadim turn {self.size} {self.seed}".encode()).digest(-(-channels // 8))
        bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=channels, bitorder="little")
        return (1 - 2 * bits.astype(np.int8)).astype(np.int8)

    def apply(self, x: F32) -> F32:
        """R x of every F32[..., channels]: of weights F32[OC, IC] it is W RT."""
        return self._product(x * self.signs(x.shape[-1]), self.left, self.right)

    def back(self, y: F32) -> F32:
        """RT y, the inverse of ``apply``."""
        return self._product(y, self.left.T, self.right.T) * self.signs(y.shape[-1])

    def matrix(self, channels: int) -> F32:
        """R, F32[channels, channels]."""
        return self.apply(np.eye(channels, dtype=np.float32)).T

    def moment(self, hessian: F32) -> F32:
        """R H RT of the second moment F32[channels, channels] of an input.

        Of its diagonal alone, F32[channels], each run's mean: whatever channels mattered, all in a run now matter alike.
        """
        if hessian.ndim == 1:
            return np.repeat(hessian.reshape(-1, self.size).mean(1), self.size)
        turned = self.apply(np.ascontiguousarray(self.apply(hessian).T))
        symmetric: F32 = (turned + turned.T) / np.float32(2)
        return symmetric

    def _product(self, values: F32, left: I8, right: I8) -> F32:
        assert values.shape[-1] % self.size == 0, (values.shape, self.size)
        (a, b), root = self._orders, np.float32(self.size) ** np.float32(-0.5)
        runs = values.reshape(-1, b) @ right.T.astype(np.float32)
        turned: F32 = np.matmul(left.astype(np.float32) * root, runs.reshape(-1, a, b)).reshape(values.shape)
        return turned


@cache
def largest_run(channels: int) -> int:
    """The largest divisor of so many channels that is the order of a Hadamard matrix known here."""
    divisors = (channels // count for count in range(1, channels + 1) if channels % count == 0)
    return next(size for size in divisors if orders_of(size) is not None)


@cache
def orders_of(size: int) -> tuple[int, int] | None:
    """Of two Hadamard matrices whose product has that order: the right one Sylvester's, which takes additions alone, where that
    can be, and both as small as can be; None where there are none."""
    pairs = [(order, size // order) for order in range(1, size + 1) if size % order == 0]
    known = [pair for pair in pairs if all(map(is_order, pair))]
    return min(known, key=lambda pair: (pair[1].bit_count() > 1, sum(pair)), default=None)


def is_order(order: int) -> bool:
    """Whether ``hadamard`` makes one."""
    return _base(order) is not None


@cache
def hadamard(order: int) -> I8:
    """H with H HT = order * I, I8[order, order] of 1 and -1, Paley's times Sylvester's; not to be changed."""
    base = _base(order)
    assert base is not None, f"no Hadamard matrix of order {order}"
    matrix = _paley(PALEY[base]) if base > 1 else np.ones((1, 1), np.int8)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.flags.writeable = False
    return matrix


def _base(order: int) -> int | None:
    """1 or a key of PALEY of which the order is 1, 2, 4, ... times as much."""
    multiples = (base for base in (1, *PALEY) if order % base == 0)
    return next((base for base in multiples if (order // base).bit_count() == 1), None)


def _paley(prime: int) -> I8:
    """Of order prime + 1 where that is a multiple of 4, else 2 * (prime + 1)."""
    square = np.full(prime, -1, np.int8)  # whether a number is a square modulo the prime
    square[np.arange(prime) ** 2 % prime] = 1
    square[0] = 0
    index = np.arange(prime)
    core = np.ones((prime + 1, prime + 1), np.int8)
    core[0, 0], core[1:, 1:] = 0, square[(index[:, None] - index) % prime]
    own = np.eye(prime + 1, dtype=np.int8)
    if prime % 4 == 3:
        core[1:, 0] = -1
        return own + core
    return np.kron(core, np.array([[1, 1], [1, -1]], np.int8)) + np.kron(own, np.array([[1, -1], [-1, -1]], np.int8))
