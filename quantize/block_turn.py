"""A turn of input channels that was found in data: two small orthogonal matrices, and an order of channels between them.

::

    y = (second on each block) P (first on each block) x          a block: ``size`` channels side by side; (P z)[i] = z[order[i]]

Unlike a ``Rotation`` it follows from no seed: a store and a file hold its arrays, once for all linears that read the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.turn import LEAST

F32 = NDArray[np.float32]
Index = NDArray[np.intp]
LARGEST = 64  # channels of a block
ORTHOGONAL = 1e-3  # how far products of a matrix's rows may be from 0 and 1: of one that was found they are within 1e-6


@dataclass(frozen=True)
class FoundTurn:
    """What is known of a BlockTurn without its arrays: blocks of ``size`` channels. ``site``: the linear whose file in a store
    holds them; "" as long as none is found."""

    size: int
    site: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a store says it."""
        return {"size": self.size, "site": self.site} if self.site else {"size": self.size}

    def fits(self, channels: int) -> bool:
        """Whether so many channels can be turned so."""
        return LEAST <= self.size <= LARGEST and self.size.bit_count() == 1 and channels % self.size == 0


@dataclass(frozen=True, eq=False)
class BlockTurn:
    """``first`` and ``second`` F32[n, n], orthogonal; ``order`` intp[IC], a permutation; ``site``: as of FoundTurn."""

    first: F32
    second: F32
    order: Index
    site: str = ""

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")  # what overflows is refused
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], found: FoundTurn) -> BlockTurn:
        """The inverse of ``arrays``. Raises ValueError for what turns nothing."""
        for name in ("first", "second"):
            matrix = arrays[name]
            off = np.abs(matrix @ matrix.T - np.eye(found.size)).max()
            if not off <= ORTHOGONAL:  # a nan is not
                raise ValueError(f"{name}, which turns blocks of {found.size} channels, is {off:.2g} from orthogonal")
        order = arrays["order"].astype(np.intp)
        if not np.array_equal(np.sort(order), np.arange(len(order))):
            raise ValueError(f"order is none of {len(order)} channels, each once")
        return cls(arrays["first"], arrays["second"], order, found.site)

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """As a store and a file hold them: ``first`` and ``second`` F32[n, n], ``order`` I32[IC]."""
        return {"first": self.first, "second": self.second, "order": self.order.astype(np.int32)}

    @property
    def found(self) -> FoundTurn:
        """What is known without them."""
        return FoundTurn(len(self.first), self.site)

    @property
    def per_channel(self) -> int:
        """See Turn."""
        return len(self.first) + len(self.second)

    def to_json(self) -> dict[str, Any]:
        """See Turn."""
        return self.found.to_json()

    def apply(self, x: F32) -> F32:
        """See Turn."""
        return in_blocks(in_blocks(x, self.first)[..., self.order], self.second)

    def back(self, y: F32) -> F32:
        """See Turn."""
        return in_blocks(in_blocks(y, self.second.T)[..., np.argsort(self.order)], self.first.T)

    def matrix(self, channels: int) -> F32:
        """See Turn."""
        return self.apply(np.eye(channels, dtype=np.float32)).T

    def moment(self, hessian: F32) -> F32:
        """See Turn. Of a diagonal alone the diagonal, as if no two channels went together."""
        if hessian.ndim == 1:
            alone: F32 = np.square(self.matrix(len(hessian))) @ hessian
            return alone
        turned = self.apply(np.ascontiguousarray(self.apply(hessian).T))
        symmetric: F32 = (turned + turned.T) / np.float32(2)
        return symmetric


def in_blocks(values: F32, matrix: F32) -> F32:
    """``matrix`` F32[n, n] times each block of n channels of F32[..., channels]."""
    turned: F32 = (values.reshape(-1, len(matrix)) @ matrix.T).reshape(values.shape)
    return turned


def block_size(channels: int) -> int:
    """Of blocks that so many channels are turned in, the largest power of two that divides them; at most LARGEST."""
    return min(LARGEST, channels & -channels)
