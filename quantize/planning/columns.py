"""A linear in parts by its header alone: channels that float16 keeps beside the codes, and what a method divides it into."""

from __future__ import annotations

import math
from dataclasses import replace

from quantize.block import Division
from quantize.config import QuantizeConfig
from quantize.errors import ConfigError, asked
from quantize.methods import METHODS, Method, read_word
from quantize.steps.divide import kept_columns
from quantize.types import Target, TensorPlan


def with_columns(plan: TensorPlan, wanted: Division, target: Target) -> TensorPlan:
    """Of a linear with candidates. Raises ConfigError where the target adds no parts, and for more channels than there are."""
    divides, columns = METHODS[plan.method].divides, wanted.float_columns
    if divides is not None:
        return divides.divided(plan, wanted)
    if not columns or len(plan.shape) > 2:  # a stack is multiplied by one node, to which nothing is added
        return plan
    if target.lacks_parts is not None:
        raise ConfigError(f"{asked('float_columns', columns)}: {target.lacks_parts}")
    return replace(plan, float_columns=kept_columns(plan, columns, wanted.hidden))


def may_keep(config: QuantizeConfig) -> bool:
    """Whether a target size may give linears columns that float16 keeps: the source runs, nothing moves weights or turns inputs
    afterwards, and nobody asked for none."""
    method, around = read_word(config.method).method, config.around
    moves = around.mends_of_parts or method.learns or method.folds or method.turns or method.turn_blocks
    return around.float_columns is None and config.data.imatrix is None and not moves


def widest(bits: float | None) -> int | None:
    """Of the widths that are so many bits on average."""
    return None if bits is None else math.ceil(bits)


def check_width(method: Method, bits: float | None) -> None:
    """Raises ConfigError for a fraction that the method does not come to."""
    if bits is not None and bits != int(bits) and not method.mixes_widths:
        mixing = " or ".join(name for name, other in METHODS.items() if other.mixes_widths)
        told = f"only {mixing} mixes widths; give whole bits, or {asked('method', mixing)}"
        raise ConfigError(f"{asked('bits', bits)}: {told}")
