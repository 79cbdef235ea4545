"""Integer codes with one float scale and one integer zero point per group: what ONNX's MatMulNBits multiplies by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantize.errors import ConfigError, asked
from quantize.formula import Formula
from quantize.grids.exact import either_sign, exact_scale
from quantize.grids.ggml import CUTS
from quantize.grids.least_squares import Nearest, best_centred, best_scale, fit_turned, spreads, whole_codes, whole_formula
from quantize.types import F32, FINE_BITS, U8, Array, Grid, Params

BITS = (2, 3, 4, 8)
MIN_GROUP_SIZE = 16
SCALE_DTYPES = ("float16", "float32")
LEAST_SCALE = {"float16": 2.0**-24, "float32": 2.0**-126}  # a subnormal float16; dividing by a subnormal float32 overflows


@dataclass(frozen=True)
class IntAffine:
    """``w = (q - zero_point) * scale``, q and zero_point in [0, 2**bits).

    params: ``scale`` F16 or F32[rows, n_groups], ``zero_point`` U8[rows, n_groups]. Symmetric: zero_point is 2**(bits-1)
    everywhere, and the sign of the scale puts the larger extreme on code 0, as ggml's Q4_0 does.
    """

    bits: int = 4
    group_size: int = 64
    symmetric: bool = False
    scale_dtype: str = SCALE_DTYPES[0]

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ConfigError(f"{asked('bits', self.bits)}: the int grid stores {', '.join(map(str, BITS))} bits")
        if self.group_size < MIN_GROUP_SIZE or self.group_size & (self.group_size - 1):
            raise ConfigError(f"group size {self.group_size}: must be a power of two of at least {MIN_GROUP_SIZE}")
        if self.scale_dtype not in SCALE_DTYPES:
            raise ConfigError(f"{asked('scale_dtype', self.scale_dtype)}: choose one of {', '.join(SCALE_DTYPES)}")

    @property
    def name(self) -> str:
        """ "int": with the fields, the whole identity."""
        return "int"

    @property
    def block_size(self) -> int:
        """Groups are fitted one by one."""
        return self.group_size

    @property
    def scale_bytes(self) -> int:
        """Bytes of one stored scale."""
        return np.dtype(self.scale_dtype).itemsize

    @property
    def bits_per_weight(self) -> float:
        """Codes, a scale and, if asymmetric, a packed zero point per group."""
        return self.bits + (8 * self.scale_bytes + (0 if self.symmetric else self.bits)) / self.group_size

    @property
    def formula(self) -> Formula:
        """See Grid."""
        return whole_formula(self.bits, centred=True)

    def fit(self, blocks: F32, importance: F32 | None = None) -> Params:
        """Min-max range widened to contain zero (the paper's does not, and clips one-sided groups).

        With ``importance`` F32[..., group_size] (it broadcasts): the params of least error.
        """
        if importance is not None:
            return fit_turned(blocks, importance, self.group_size, self._search)
        low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
        if self.symmetric:
            return self._centred(np.where(-low > high, low, high) / np.float32(-self._middle))
        scale = self._stored((high - low) / np.float32(self._top))
        zero = np.clip(np.rint(-low / scale.astype(np.float32)), 0, self._top)
        return {"scale": scale, "zero_point": zero.astype(np.uint8)}

    def exact(self, blocks: F32) -> Params | None:
        """See Grid."""
        if self.symmetric:
            levels = either_sign(range(-self._middle, self._middle))
            scale = exact_scale(blocks, levels, Nearest(-self._middle, self._middle - 1).__call__, self._stored)
            return None if scale is None else self._centred(scale)
        scale = exact_scale(blocks, range(1, self._top + 1), np.rint, self._stored)
        if scale is None:
            return None
        whole = np.rint(blocks / scale.astype(np.float32)[..., None])
        low, high = np.minimum(whole.min(-1), 0), np.maximum(whole.max(-1), 0)
        return None if (high - low > self._top).any() else {"scale": scale, "zero_point": (-low).astype(np.uint8)}

    def _search(self, x: F32, w: F32) -> Params:
        """F32[group, 1, n] twice -> params [n]."""
        if self.symmetric:
            starts = np.concatenate([-self._middle * CUTS, (self._middle - 1) * CUTS])
            nearest = Nearest(-self._middle, self._middle - 1)
            return self._centred(best_scale(x[:, 0], w[:, 0], nearest, starts)[0])
        scale, zero = best_centred(x[:, 0], w[:, 0], self._top, spreads(self._top))
        return {"scale": self._stored(scale), "zero_point": zero.astype(np.uint8)}

    @property
    def _top(self) -> int:
        return (1 << self.bits) - 1

    @property
    def _middle(self) -> int:
        return 1 << self.bits - 1

    def _centred(self, scale: Array) -> Params:
        return {"scale": self._stored(scale), "zero_point": np.full(scale.shape, self._middle, np.uint8)}

    def _stored(self, scale: Array) -> Array:
        """As the file has it. Every group gets at least the least scale, even one of zeros: nothing divides by zero, and the
        split form, which multiplies activations by scales, does not make such a channel the loudest.

        What overflows becomes infinite, and the pipeline refuses that by name.
        """
        least = np.float32(LEAST_SCALE[self.scale_dtype])
        kept = np.copysign(np.maximum(np.abs(scale), least), scale)
        with np.errstate(over="ignore"):
            return kept.astype(self.scale_dtype)

    def scale_zero(self, params: Params) -> tuple[F32, F32]:
        """params -> (scale, zero point as float), F32[..., 1] each."""
        return params["scale"].astype(np.float32)[..., None], params["zero_point"].astype(np.float32)[..., None]

    def encode(self, x: F32, scale: F32, zero: F32, importance: F32 | None = None) -> U8:
        """Nearest code, ties to even."""
        return whole_codes(x / scale, zero, self._top)

    def decode(self, codes: U8, scale: F32, zero: F32) -> F32:
        """``(q - zero) * scale`` in float32, the order of onnxruntime's DequantizeLinear."""
        return (codes.astype(np.float32) - zero) * scale


def one_scale(grid: Grid, channels: int) -> bool:
    """Whether a row of so many weights is bytes around 128 under one scale: what multiplies an input that has one itself."""
    whole = isinstance(grid, IntAffine) and grid.group_size >= channels
    return whole and grid.bits == FINE_BITS and grid.symmetric
