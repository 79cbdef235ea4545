"""Which tensor of a template is which weight in torch: by content, row by row. No name is compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantize.types import F32, Array

Key = TypeVar("Key")
U64 = NDArray[np.uint64]
PART = 1 << 20  # weights that are looked at together


@dataclass(frozen=True)
class Rows(Generic[Key]):
    """Where the rows of a tensor [OC, IC] lie: row i is row ``index[i]`` of ``keys[which[i]]``; intp[OC] both."""

    keys: tuple[Key, ...]
    which: NDArray[np.intp]
    index: NDArray[np.intp]

    def gather(self, values: Mapping[Key, Array]) -> Array:
        """One entry for each row, [OC, ...], from those of the weights' rows."""
        first = values[self.keys[0]]
        out = np.empty((len(self.index), *first.shape[1:]), first.dtype)
        for number, key in enumerate(self.keys):
            own = self.which == number
            out[own] = values[key][self.index[own]]
        return out


class Matcher(Generic[Key]):
    """Finds tensors among ``weights``, each F32[OC, IC]."""

    def __init__(self, weights: Iterable[tuple[Key, F32]]) -> None:
        self._keys, marks, which, index = list[Key](), list[U64](), list[NDArray[np.intp]](), list[NDArray[np.intp]]()
        for number, (key, weight) in enumerate(weights):
            self._keys.append(key)
            marks.append(_marks(weight))
            which.append(np.full(len(weight), number, np.intp))
            index.append(np.arange(len(weight)))
        self._marks, self._which, self._index = np.concatenate(marks), np.concatenate(which), np.concatenate(index)
        self._order = np.argsort(self._marks, kind="stable")
        self._free = np.ones(len(self._marks), bool)

    def find(self, weight: F32) -> tuple[Rows[Key] | None, float]:
        """Where the rows of F32[OC, IC] are, if all are there; and what part of them is.

        Rows that are alike, as those of zeros or of a layer that is there twice, are taken in turn, first from the weight
        that has most of the others.
        """
        marks = _marks(weight)
        first = np.searchsorted(self._marks[self._order], marks, "left")
        last = np.searchsorted(self._marks[self._order], marks, "right")
        part = float(np.mean(last > first))
        if part < 1:
            return None, part
        alone = self._order[first[last - first == 1]]
        favoured = [number for number, _ in Counter(self._which[alone].tolist()).most_common()]
        place = np.array([self._best(self._order[low:high], favoured) for low, high in zip(first, last, strict=True)])
        used = np.unique(self._which[place])
        rows = Rows(tuple(self._keys[number] for number in used), np.searchsorted(used, self._which[place]), self._index[place])
        return rows, part

    def _best(self, places: NDArray[np.intp], favoured: list[int]) -> int:
        if len(places) > 1:
            free = places[self._free[places]]
            places = free if len(free) else places
            which = self._which[places]
            places = next((places[which == number] for number in favoured if number in which), places)
        self._free[places[0]] = False
        return int(places[0])


def _marks(weight: F32) -> U64:
    """A number for each row that its content has and no other."""
    columns = weight.shape[1]
    factors = np.random.default_rng(0).integers(1, 1 << 63, columns, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    out, step = np.zeros(len(weight), np.uint64), max(1, PART // columns)
    for start in range(0, len(weight), step):
        rows = np.ascontiguousarray(weight[start : start + step] + np.float32(0))  # -0 is 0
        mixed = (rows.view(np.uint32).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)) * factors
        out[start : start + step] = np.bitwise_xor.reduce(mixed ^ (mixed >> np.uint64(29)), axis=1)
    return out
