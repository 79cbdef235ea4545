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
from quantize.model_config import part_name
from quantize.rounding import NEAREST
from quantize.rounding.gptq import DAMPING
from quantize.types import F32, InputStats, Need, PlainTensor
from quantize.weight import Index, Part


@dataclass(frozen=True, eq=False)
class Kept:
    """``weight`` F32[OC, IC] before rounding and its ``stats``; ``columns`` intp[n] in float16; ``absorb`` F32[IC, n]."""

    weight: F32
    stats: InputStats
    columns: Index
    absorb: F32

    def part(self, name: str, rounded: F32) -> Part:
        """What stands beside F32[OC, IC]. Raises PlanError for what float16 does not hold."""
        values = ((self.weight - rounded) @ self.absorb).astype(np.float16)
        if not np.isfinite(values).all():
            raise PlanError(
                f"{name}: input channels of it overflow float16, which would keep them; give {asked('float_columns', 0)}"
            )
        return Part(PlainTensor(part_name(name, 1), values, "F16"), self.columns)

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
            columns, first = _loudest(block, site, kit), block.stats[site[0]]
            absorb, rest = _absorbed(first, columns)
            for name in site:
                beside[name] = Kept(block.tensors[name], block.stats[name], columns, absorb)
                tensors[name] = block.tensors[name].copy()
                tensors[name][:, columns] = 0
                stats[name] = replace(block.stats[name], hessian=rest, visit=None)
        return replace(block, tensors=tensors, stats=stats, beside=beside)


def _sites(block: Block, names: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Of linears that keep columns."""
    for site in block.sites:
        keeping = tuple(name for name in site if name in names and block.plans[name].float_columns)
        if keeping:
            yield keeping


def _loudest(block: Block, site: tuple[str, ...], kit: Kit) -> Index:
    """The channels whose errors cost most if each linear of the site is rounded to nearest, in rising order."""
    total = np.zeros(block.tensors[site[0]].shape[1], np.float32)
    for name in site:
        weight, stats, grids = block.tensors[name], block.stats[name], block.plans[name].candidates
        axis = next(iter(grids))
        error = np.square(weight - dequantize(kit.rounders[NEAREST](name, weight, grids[axis], axis, None)))
        rows = np.ones(len(weight), np.float32) if stats.row_weight is None else stats.row_weight
        total += rows @ error
    cost = total * block.stats[site[0]].importance
    return np.sort(np.argsort(-cost, kind="stable")[: block.plans[site[0]].float_columns])


def _absorbed(stats: InputStats, columns: Index) -> tuple[F32, F32]:
    """``absorb`` F32[IC, n] and the Hessian F32[IC, IC] of the other channels."""
    hessian = stats.hessian.astype(np.float64)
    read = hessian[:, columns]
    kept = read[columns].copy()
    kept[np.diag_indices_from(kept)] += DAMPING * np.diag(hessian).mean() + np.finfo(np.float32).tiny
    absorb = np.linalg.solve(kept, read.T).T
    absorb[columns] = np.eye(len(columns))
    rest = hessian - absorb @ read.T
    rest[columns] = rest[:, columns] = 0
    return absorb.astype(np.float32), ((rest + rest.T) / 2).astype(np.float32)
