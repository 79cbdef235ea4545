"""Where a target rounds what linears read by scales known before anything runs: the grid that this asks of weights, and of which
linears it is asked."""

from __future__ import annotations

from dataclasses import replace

from quantize.config import WHOLE_CHANNEL, GridSpec
from quantize.grids.int_affine import one_scale
from quantize.model_config import block_index
from quantize.types import FINE_BITS, Axis, Target, TensorPlan


def static_grid(spec: GridSpec, target: Target) -> GridSpec:
    """Bytes under one scale a row, unless another width, grid or group was asked for."""
    free = spec.name in (None, "int") and spec.bits in (None, FINE_BITS) and spec.group_size in (None, WHOLE_CHANNEL)
    if not target.activations or not free:
        return spec
    return replace(spec, bits=FINE_BITS, group_size=WHOLE_CHANNEL, symmetric=True)


def with_activations(plan: TensorPlan, target: Target) -> TensorPlan:
    """Of a linear in a decoder block, whole and as it is, that is bytes under one scale a row: what may round its input."""
    grid = plan.candidates.get(Axis.PER_OC)
    plain = len(plan.candidates) == 1 and len(plan.shape) == 2 and block_index(plan.name) is not None
    whole = plan.turn is None and not plan.parts and not plan.float_columns
    if not plain or not whole or grid is None or not one_scale(grid, plan.shape[1]):
        return plan
    return replace(plan, activations=target.activations)
