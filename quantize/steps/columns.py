"""Input channels that float16 keeps: the outliers of QUIK (arXiv 2310.09259), for weights.

A part F beside the rounded weight Q reads the channels f. Whatever Q is, the F that loses least is, with H = E[x xT] ::

    F = (W - Q) A                       A = H[:, f] H[f, f]^-1
    H' = H - A H[f, :]                  what errors of the other channels cost then; 0 in f

so rounding under H' lets F absorb its errors, whichever rounder it is (QUIK's columns are GPTQ's last: the same F).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from quantize.block import Block, Kit
from quantize.blocks import dequantize
from quantize.errors import PlanError, asked
from quantize.loss import output_loss
from quantize.model_config import part_name, weight_name
from quantize.rounding import NEAREST
from quantize.rounding.gptq import DAMPING
from quantize.types import F32, Array, InputStats, Need, PlainTensor, Tensor
from quantize.weight import Index, Part, StoredWeight, weight_of


@dataclass(frozen=True, eq=False)
class Kept:
    """``weight`` F32[OC, IC] before rounding and its ``stats``; ``columns`` intp[n] in float16; ``absorb`` F32[IC, n]."""

    weight: F32
    stats: InputStats
    columns: Index
    absorb: F32

    def others(self) -> F32:
        """F32[OC, IC] of the other channels, zeros in those that are kept."""
        weight = self.weight.copy()
        weight[:, self.columns] = 0
        return weight

    def stored(self, name: str, rounded: Tensor) -> StoredWeight:
        """See Beside. Raises PlanError for what float16 does not hold."""
        wanted: F32 = np.subtract(self.weight, weight_of(rounded)) @ self.absorb
        kept = in_float16(part_name(name, 1), wanted)
        return StoredWeight((Part(rounded), Part(kept, self.columns)))

    def loss(self, stored: F32) -> float:
        """See Beside; it knows what float16 has rounded, which no rounder was told."""
        return output_loss(self.weight, stored, self.stats)


@dataclass(frozen=True)
class FloatColumns:
    """As many as are planned for each linear; linears that share an input keep the same channels of it."""

    needs: Need = Need.HESSIAN

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step."""
        tensors, stats, beside = dict(block.tensors), dict(block.stats), dict[str, Kept]()
        for site in _sites(block, names):
            columns = _loudest(block, site, kit)
            absorb, rest = absorbed(block.stats[site[0]].hessian, columns)
            for name in site:
                beside[name] = Kept(block.tensors[name], block.stats[name], columns, absorb)
                tensors[name], stats[name] = beside[name].others(), replace(block.stats[name], hessian=rest, visit=None)
        return replace(block, tensors=tensors, stats=stats, beside=beside)


def in_float16(part: str, values: F32) -> PlainTensor:
    """F32[OC, n]. Raises PlanError for what float16 does not hold."""
    halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise PlanError(
            f"{weight_name(part)}: input channels of it overflow float16, which would keep them; give {asked('float_columns', 0)}"
        )
    return PlainTensor(part, halves, "F16")


def _sites(block: Block, names: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Of linears that keep as many columns."""
    for site in block.sites:
        alike = dict[int, list[str]]()
        for name in site:
            if name in names and block.plans[name].float_columns:
                alike.setdefault(block.plans[name].float_columns, []).append(name)
        yield from map(tuple, alike.values())


def _loudest(block: Block, site: tuple[str, ...], kit: Kit) -> Index:
    """The channels whose errors cost most if each linear of the site is rounded to nearest, in rising order."""
    total = np.zeros(block.tensors[site[0]].shape[1], np.float32)
    for name in site:
        weight, stats, grids = block.tensors[name], block.stats[name], block.plans[name].candidates
        axis = next(iter(grids))
        total += harm(weight, dequantize(kit.rounders[NEAREST](name, weight, grids[axis], axis, None)), stats)
    return loudest(total, block.plans[site[0]].float_columns)


def harm(weight: F32, rounded: F32, stats: InputStats) -> F32:
    """F32[IC]: what the errors of each input channel of F32[OC, IC] cost by themselves."""
    rows = np.ones(len(weight), np.float32) if stats.row_weight is None else stats.row_weight
    cost: F32 = (rows @ np.square(weight - rounded)) * stats.importance
    return cost


def loudest(cost: F32, count: int) -> Index:
    """So many channels of F32[IC] that cost most, in rising order."""
    return np.sort(np.argsort(-cost, kind="stable")[:count])


def absorbed(hessian: F32, columns: Index) -> tuple[F32, F32]:
    """Of F32[IC, IC] ``absorb`` F32[IC, n], and what is left of it for the other channels, F32[IC, IC]."""
    moments, absorb = hessian.astype(np.float64), absorbing(hessian, columns)
    rest = moments - absorb @ moments[columns]
    rest[columns] = rest[:, columns] = 0
    return absorb.astype(np.float32), ((rest + rest.T) / 2).astype(np.float32)


def absorbing(hessian: F32, columns: Index) -> Array:
    """F64[IC, n]: what a unit of error in each channel of F32[IC, IC] asks of the ``columns``, which have their own."""
    moments = hessian.astype(np.float64)
    read = moments[:, columns]
    kept = read[columns].copy()
    kept[np.diag_indices_from(kept)] += DAMPING * np.diag(moments).mean() + np.finfo(np.float32).tiny
    absorb: Array = np.linalg.solve(kept, read.T).T
    absorb[columns] = np.eye(len(columns))
    return absorb
