"""ggml's blocks of 32 as grids: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 (ggml-quants.c, ``quantize_row_q*_ref``).

Codes are unsigned here, as the block stores them; Q8_0, whose block stores int8, uses code = int8 + 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantize.formula import Formula
from quantize.grids.exact import either_sign, exact_scale
from quantize.grids.least_squares import Nearest, best_line, best_scale, fit_turned, spreads, whole_codes, whole_formula
from quantize.types import F32, U8, Array, Params

BLOCK = 32
CUTS = np.linspace(0.8, 1.12, 9)  # a search puts the extreme weight on these multiples of the last code at either side


@dataclass(frozen=True)
class GgmlSymmetric:
    """``w = d * (q - 2**(bits-1))``; params: ``d`` F16[rows, n_blocks]."""

    name: str
    bits: int
    bits_per_weight: float
    signed_extreme: bool = True  # Q4_0 and Q5_0 put the larger extreme on code 0; Q8_0 leaves code 0 unused
    group_size: int = BLOCK
    block_size: int = BLOCK
    symmetric: bool = True

    @property
    def formula(self) -> Formula:
        """See Grid."""
        return whole_formula(self.bits, centred=True)

    def fit(self, blocks: F32, importance: F32 | None = None) -> Params:
        """``d`` from the extreme value; with ``importance`` that of least error, rounded to float16 as the file stores it."""
        if importance is not None and self.signed_extreme:
            return fit_turned(blocks, importance, BLOCK, self._search)
        low, high = blocks.min(-1), blocks.max(-1)
        middle = np.float32(2 ** (self.bits - 1))
        if not self.signed_extreme:
            return {"d": to_float16(np.maximum(-low, high) / (middle - 1))}
        return {"d": to_float16(np.where(-low > high, low, high) / -middle)}

    def exact(self, blocks: F32) -> Params | None:
        """See Grid."""
        middle = 2 ** (self.bits - 1)
        d = exact_scale(blocks, either_sign(range(-middle, middle)), Nearest(-middle, middle - 1).__call__, to_float16)
        return None if d is None else {"d": d}

    def _search(self, x: F32, w: F32) -> Params:
        middle = 2 ** (self.bits - 1)
        starts = np.concatenate([-middle * CUTS, (middle - 1) * CUTS])
        return {"d": to_float16(best_scale(x[:, 0], w[:, 0], Nearest(-middle, middle - 1), starts)[0])}

    def scale_zero(self, params: Params) -> tuple[F32, F32]:
        """(d, 2**(bits-1)) as F32[..., 1]."""
        d = params["d"].astype(np.float32)[..., None]
        return d, np.full_like(d, 2 ** (self.bits - 1))

    def encode(self, x: F32, scale: F32, zero: F32, importance: F32 | None = None) -> U8:
        """Nearest code; a block whose d is 0 gets the middle."""
        return whole_codes(divide(x, scale), zero, 2**self.bits - 1)

    def decode(self, codes: U8, scale: F32, zero: F32) -> F32:
        """``d * (q - zero)`` (``dequantize_row_q4_0`` and its kin)."""
        return scale * (codes.astype(np.float32) - zero)


@dataclass(frozen=True)
class GgmlOffset:
    """``w = d * q + m``; params: ``d`` and ``m`` F16[rows, n_blocks]."""

    name: str
    bits: int
    bits_per_weight: float
    group_size: int = BLOCK
    block_size: int = BLOCK
    symmetric: bool = False

    @property
    def formula(self) -> Formula:
        """See Grid."""
        return whole_formula(self.bits, centred=False)

    def fit(self, blocks: F32, importance: F32 | None = None) -> Params:
        """``d`` and ``m`` from the extremes; with ``importance`` those of least error."""
        if importance is not None:
            return fit_turned(blocks, importance, BLOCK, self._search)
        low, high = blocks.min(-1), blocks.max(-1)
        return {"d": to_float16((high - low) / np.float32(2**self.bits - 1)), "m": to_float16(low)}

    def exact(self, blocks: F32) -> Params | None:
        """See Grid."""
        low = to_float16(blocks.min(-1))
        d = exact_scale(blocks - low.astype(np.float32)[..., None], range(1, 2**self.bits), np.rint, to_float16)
        return None if d is None else {"d": d, "m": low}

    def _search(self, x: F32, w: F32) -> Params:
        scale, low, _ = best_line(x[:, 0], w[:, 0], 2**self.bits - 1, spreads(2**self.bits - 1), ceiling=np.inf)
        return {"d": to_float16(scale), "m": to_float16(low)}

    def scale_zero(self, params: Params) -> tuple[F32, F32]:
        """(d, m) as F32[..., 1]: here "zero" is the value of code 0."""
        return params["d"].astype(np.float32)[..., None], params["m"].astype(np.float32)[..., None]

    def encode(self, x: F32, scale: F32, zero: F32, importance: F32 | None = None) -> U8:
        """Nearest code."""
        return whole_codes(divide(x - zero, scale), 0, 2**self.bits - 1)

    def decode(self, codes: U8, scale: F32, zero: F32) -> F32:
        """``d * q + m`` (``dequantize_row_q4_1``), product and sum rounded one after the other."""
        return scale * codes.astype(np.float32) + zero


def to_float16(values: Array) -> Array:
    """Rounded as the file stores it; what overflows becomes infinite, and the pipeline refuses that by name."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def divide(x: F32, scale: F32) -> F32:
    """x / scale, and 0 where scale is 0."""
    quotient: F32 = np.divide(x, np.where(scale == 0, np.float32(np.inf), scale))
    return quotient


GGML_GRIDS = (
    GgmlSymmetric("q4_0", 4, 4.5),
    GgmlOffset("q4_1", 4, 5.0),
    GgmlSymmetric("q5_0", 5, 5.5),
    GgmlOffset("q5_1", 5, 6.0),
    GgmlSymmetric("q8_0", 8, 8.5, signed_extreme=False),
)
