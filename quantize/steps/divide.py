"""Which parts a weight is made of: so many input channels on each grid, and some in float16. Which ones, the text tells later."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from quantize.architecture.families import ends_mlp
from quantize.block import Division
from quantize.errors import ConfigError, asked
from quantize.grids import make_grid
from quantize.grids.int_affine import IntAffine
from quantize.types import Grid, Need, PartPlan, TensorPlan

HIGHER = {2: 3, 3: 4, 4: 8, 8: 8}  # bits of the next class
LEAST, MOST = 2, 4  # bits that widths are mixed between
FLOAT_BITS = 16


@dataclass(frozen=True)
class KeepLoudest:
    """Of each linear the loudest input channels in float16, the others on one grid; of what ends an MLP that of the next class.

    ``columns``: how many by default of a linear that reads the residual stream, of a wider one as many times more.
    """

    columns: int
    needs: Need = Need.WEIGHTS

    def divided(self, plan: TensorPlan, wanted: Division) -> TensorPlan:
        """See DividingStep."""
        if len(plan.shape) > 2:
            return plan
        ((axis, grid),) = plan.candidates.items()
        if ends_mlp(plan.name):
            grid = _of_width(grid, HIGHER[grid.bits])
        count = self.columns if wanted.float_columns is None else wanted.float_columns
        kept = kept_columns(plan, count, wanted.hidden)
        parts = (PartPlan(plan.shape[1] - kept, grid), PartPlan(kept, None)) if kept else ()
        return replace(plan, candidates={axis: grid}, parts=parts)


@dataclass(frozen=True)
class MixWidths:
    """Of each linear the louder input channels a bit wider than the others, and the loudest in float16, by default a ``share`` of
    all, as far as the average pays for them. The average is what was asked for, less a bit of one channel at most."""

    share: float
    needs: Need = Need.WEIGHTS

    def divided(self, plan: TensorPlan, wanted: Division) -> TensorPlan:
        """See DividingStep."""
        bits, inputs = wanted.bits, plan.shape[-1]
        if not LEAST <= bits <= MOST:
            raise ConfigError(f"{asked('bits', bits)}: {plan.name}: widths are mixed from {LEAST} to {MOST} bits a weight")
        if len(plan.shape) > 2:
            return self._stack(plan, bits)
        ((axis, grid),) = plan.candidates.items()
        low = max(LEAST, math.ceil(bits) - 1)
        spare = round((bits - low) * inputs, 6)  # bits of a channel each, beyond the lower width
        floats = self._kept(plan, wanted, int(spare // (FLOAT_BITS - low)))
        wide = min(int(spare - (FLOAT_BITS - low) * floats), inputs - floats)
        counts = ((inputs - floats - wide, _of_width(grid, low)), (wide, _of_width(grid, low + 1)), (floats, None))
        parts = tuple(PartPlan(count, own) for count, own in counts if count)
        first = parts[0].grid
        assert first is not None, plan
        return replace(plan, candidates={axis: first}, parts=parts if len(parts) > 1 else ())

    def _kept(self, plan: TensorPlan, wanted: Division, most: int) -> int:
        """Channels in float16. Raises ConfigError for more than the average pays for."""
        if wanted.float_columns is None:
            return min(round(self.share * plan.shape[1]), most)
        kept = kept_columns(plan, wanted.float_columns, wanted.hidden)
        if kept > most:
            raise ConfigError(
                f"{asked('float_columns', wanted.float_columns)}: {plan.name}: {wanted.bits:g} bits a weight pay for {most} of "
                f"{plan.shape[1]} input channels in float16, not for {kept}; keep fewer, or raise {asked('bits')}"
            )
        return kept

    def _stack(self, plan: TensorPlan, bits: float) -> TensorPlan:
        """Of experts, to which nothing is added."""
        if bits != int(bits):
            raise ConfigError(
                f"{asked('bits', bits)}: {plan.name} is a stack of experts, multiplied by one node of one width; give whole bits"
            )
        return plan


def kept_columns(plan: TensorPlan, wanted: int, hidden: int) -> int:
    """How many input channels of a matrix float16 keeps: as many times ``wanted`` as they are times ``hidden``.

    Raises ConfigError where none would be left.
    """
    count = wanted * max(1, plan.shape[1] // hidden)
    if count >= plan.shape[1]:
        raise ConfigError(
            f"{asked('float_columns', wanted)}: {plan.name} has {plan.shape[1]} input channels, {count} of which would be kept; "
            "keep fewer"
        )
    return count


def _of_width(grid: Grid, bits: int) -> Grid:
    """The same of other bits. Raises ConfigError for a grid that has but its own."""
    if grid.bits == bits:
        return grid
    if not isinstance(grid, IntAffine):
        raise ConfigError(f"{asked('grid.name', grid.name)}: has no {bits} bits, which some channels are to have; drop it")
    return make_grid(grid.name, bits, grid.group_size, grid.symmetric, grid.scale_dtype)
