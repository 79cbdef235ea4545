"""A change of basis of a block's inner channels that leaves its function as it is.

::

    channel i of the new basis is  factor[i] * channel order[i]  of the old one, so

    what makes the channels   (rows of a weight, a bias, a norm's gain)   new[i]    = factor[i] * old[order[i]]
    what reads the channels   (columns of a weight)                       new[:, i] = old[:, order[i]] / factor[i]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from quantize.types import F32, InputStats

Index = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Basis:
    """``order`` intp[n], a permutation, and ``factor`` F32[n], never 0.

    ``offset``: what makes the channels is that much more than what is stored of it.
    """

    order: Index
    factor: F32
    offset: float = 0.0

    @classmethod
    def scaled(cls, factor: F32, offset: float = 0.0) -> Basis:
        """Every channel in its place."""
        return cls(np.arange(len(factor), dtype=np.intp), factor, offset)

    def within(self, rows: slice, count: int) -> Basis:
        """Of ``count`` channels, of which ``rows`` are these and the others stay as they are."""
        order, factor = np.arange(count, dtype=np.intp), np.ones(count, np.float32)
        order[rows] = order[rows][self.order]
        factor[rows] = self.factor
        return Basis(order, factor)

    @classmethod
    def ordered(cls, order: Index) -> Basis:
        """Every channel as large as it was."""
        return cls(order, np.ones(len(order), np.float32))

    def made(self, values: F32) -> F32:
        """F32[n, ...] of what makes the channels."""
        return self._stored(self._whole(values)[self.order] * self._along(values))

    def made_back(self, values: F32) -> F32:
        """The inverse of ``made``."""
        return self._stored(_scattered(self._whole(values) / self._along(values), self.order))

    def read(self, weight: F32) -> F32:
        """F32[OC, n] of what reads the channels."""
        return weight[:, self.order] / self.factor

    def read_back(self, weight: F32) -> F32:
        """The inverse of ``read``."""
        return _scattered((weight * self.factor).T, self.order).T

    def moment(self, hessian: F32) -> F32:
        """F32[n, n] or its diagonal F32[n]: the second moment of the channels."""
        if hessian.ndim == 1:
            return hessian[self.order] * np.square(self.factor)
        ordered: F32 = hessian[np.ix_(self.order, self.order)]
        ordered *= self.factor
        ordered *= self.factor[:, None]
        return ordered

    def stats(self, stats: InputStats) -> InputStats:
        """Of what reads the channels."""
        inputs = None if stats.inputs is None else stats.inputs.moved(self.order, self.factor)
        return replace(stats, hessian=self.moment(stats.hessian), visit=None, inputs=inputs)

    def cost(self, per_square: F32) -> F32:
        """F32[n]: what a squared error of the channels costs."""
        costs: F32 = per_square[self.order]
        costs /= np.square(self.factor)
        return costs

    def _whole(self, stored: F32) -> F32:
        return stored + np.float32(self.offset) if self.offset else stored

    def _stored(self, whole: F32) -> F32:
        return whole - np.float32(self.offset) if self.offset else whole

    def _along(self, values: F32) -> F32:
        return self.factor.reshape(-1, *[1] * (values.ndim - 1))


def _scattered(values: F32, order: Index) -> F32:
    out = np.empty_like(values)
    out[order] = values
    return out


@dataclass(frozen=True, eq=False)
class Fold:
    """One change of basis, by names within a decoder block: what makes the channels and what reads them."""

    made: Mapping[str, Basis] = field(default_factory=dict)
    read: Mapping[str, Basis] = field(default_factory=dict)

    def tensor(self, name: str, values: F32) -> F32:
        """Of the block's tensor ``name`` in the new basis; F32[OC, IC] or F32[n]."""
        if name in self.made:
            values = self.made[name].made(values)
        return self.read[name].read(values) if name in self.read else values

    def back(self, name: str, values: F32) -> F32:
        """The inverse of ``tensor``."""
        if name in self.read:
            values = self.read[name].read_back(values)
        return self.made[name].made_back(values) if name in self.made else values

    def stats(self, stats: Mapping[str, InputStats]) -> dict[str, InputStats]:
        """By weight name in the new basis, where the same errors have the same loss; a Hessian that is shared stays shared."""
        shared = dict[tuple[int, int], InputStats]()
        out = {}
        for name, value in stats.items():
            if name in self.read:
                key = id(self.read[name]), id(value.hessian)
                if key not in shared:
                    shared[key] = self.read[name].stats(value)
                value = replace(value, hessian=shared[key].hessian, visit=None, inputs=shared[key].inputs)
            if name in self.made and value.row_weight is not None:
                value = replace(value, row_weight=self.made[name].cost(value.row_weight))
            out[name] = value
        return out
