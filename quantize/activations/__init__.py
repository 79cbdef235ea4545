"""ACTIVATIONS: how runtimes, and some that are only simulated, round what a linear reads; by the words that name them.

A name is the bits and what shares a scale: ``a8-block32``, ``a8-token``, ``a8-tensor``. A new one is one class and one row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantize.activations.grids import BLOCK, ActivationGrid, Blocks, Scope, Tokens, Whole
from quantize.inputs import F32, Array

BITS = (8, 6, 4)
ACTIVATIONS: dict[str, ActivationGrid] = {
    f"a{bits}-{kind.scope}": kind(bits) for bits in BITS for kind in (Blocks, Tokens, Whole)
}
STATIC = "a8-tensor"  # what QuantizeLinear does
IN_BLOCKS = "a8-block32"  # what llama.cpp does by itself, and at level 4 MatMulNBits whose weights are in such blocks
Rounding = Callable[[F32], F32]  # of F32[..., IC]


@dataclass(frozen=True)
class Activation:
    """What is stored of a linear's input: ``name`` in ACTIVATIONS; of a static one its scale, a float32, and its zero point."""

    name: str
    scale: float = 0.0
    zero_point: int = 0

    @property
    def grid(self) -> ActivationGrid:
        """What rounds it."""
        return ACTIVATIONS[self.name]

    @property
    def params(self) -> Mapping[str, Array]:
        """As ``grid`` takes them."""
        static = {"scale": np.array(self.scale, np.float32), "zero_point": np.array(self.zero_point, np.float32)}
        return static if self.grid.static else {}

    @classmethod
    def fitted(cls, name: str, sample: F32) -> Activation:
        """To a sample of the input, F32[tokens, IC]. Raises ValueError for one without tokens, or with an infinity."""
        params = ACTIVATIONS[name].fit(sample)
        return cls(name, float(params["scale"]), int(params["zero_point"])) if params else cls(name)

    def round(self, x: F32) -> F32:
        """F32[..., IC] as the linear multiplies it."""
        return self.grid.round(x, self.params)

    def to_json(self) -> dict[str, Any]:
        """As a store and a file say it."""
        static = {"scale": self.scale, "zero_point": self.zero_point} if self.grid.static else {}
        return {"name": self.name, **static}


@dataclass(frozen=True)
class Clipped:
    """Learned ends, float32, of 2**bits values that are evenly spread from the one to the other: 0 need not be one of them."""

    low: float
    high: float
    bits: int

    def round(self, x: F32) -> F32:
        """F32[..., IC] as ``adadim finetune`` trained with it."""
        low, high = np.float32(self.low), np.float32(self.high)
        steps, length = np.float32(2**self.bits - 1), high - low
        rounded: F32 = np.rint((np.clip(x, low, high) - low) * (steps / length)) * (length / steps) + low
        return rounded


__all__ = ["ACTIVATIONS", "BITS", "BLOCK", "IN_BLOCKS", "STATIC", "Activation", "ActivationGrid", "Clipped", "Rounding", "Scope"]
