"""Integer codes with one float32 scale and one integer zero point per group: what ONNX's MatMulNBits stores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantize.errors import ConfigError
from quantize.grids.search import least_error
from quantize.types import F32, U8, Array, Params

BITS = (2, 3, 4, 8)
MIN_GROUP_SIZE = 16
# Shares of the range's two ends that a search tries after min-max (OmniQuant's learned clipping as a coarse grid).
SEARCH_RANGES: F32 = np.array(
    [[1, 1], [0.93, 1], [1, 0.93], [0.93, 0.93], [0.86, 0.93], [0.93, 0.86], [0.86, 0.86], [0.78, 0.78]], np.float32
)[..., None]


@dataclass(frozen=True)
class IntAffine:
    """``w = (q - zero_point) * scale``, q and zero_point in [0, 2**bits).

    params: ``scale`` F32[rows, n_groups], ``zero_point`` U8[rows, n_groups]. Symmetric: zero_point is 2**(bits-1)
    everywhere, and the sign of the scale puts the larger extreme on code 0, as ggml's Q4_0 does.
    """

    bits: int = 4
    group_size: int = 64
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ConfigError(f"--bits {self.bits}: the int grid stores {', '.join(map(str, BITS))} bits")
        if self.group_size < MIN_GROUP_SIZE or self.group_size & (self.group_size - 1):
            raise ConfigError(f"group size {self.group_size}: must be a power of two of at least {MIN_GROUP_SIZE}")

    @property
    def name(self) -> str:
        """ "int": with bits and group size, the whole identity."""
        return "int"

    @property
    def block_size(self) -> int:
        """Groups are fitted one by one."""
        return self.group_size

    @property
    def bits_per_weight(self) -> float:
        """Codes, a float32 scale and, if asymmetric, a packed zero point per group."""
        return self.bits + (32 + (0 if self.symmetric else self.bits)) / self.group_size

    def fit(self, blocks: F32, importance: F32 | None = None) -> Params:
        """Min-max range widened to contain zero (the paper's does not, and clips one-sided groups).

        With ``importance`` F32[..., group_size] (it broadcasts): the best of several narrower ranges.
        """
        if importance is None:
            return self._from_range(blocks, 1, 1)
        return least_error(self, blocks, importance, lambda x: self._from_range(x, SEARCH_RANGES[:, 0], SEARCH_RANGES[:, 1]))

    def _from_range(self, blocks: F32, keep_low: F32 | int, keep_high: F32 | int) -> Params:
        """The range with shares of its two ends kept; shares F32[candidates, 1] give params a leading axis."""
        low, high = keep_low * np.minimum(blocks.min(-1), 0), keep_high * np.maximum(blocks.max(-1), 0)
        top, middle = 2**self.bits - 1, 2 ** (self.bits - 1)
        if self.symmetric:
            extreme = np.where(-low > high, low, high)
            return {"scale": _nonzero(extreme / np.float32(-middle)), "zero_point": np.full(low.shape, middle, np.uint8)}
        scale = _nonzero((high - low) / np.float32(top))
        return {"scale": scale, "zero_point": np.clip(np.rint(-low / scale), 0, top).astype(np.uint8)}

    def scale_zero(self, params: Params) -> tuple[F32, F32]:
        """params -> (scale, zero point as float), F32[..., 1] each."""
        scale: F32 = params["scale"][..., None]
        return scale, params["zero_point"].astype(np.float32)[..., None]

    def encode(self, x: F32, scale: F32, zero: F32) -> U8:
        """Nearest code, ties to even."""
        codes: U8 = np.clip(np.rint(x / scale) + zero, 0, 2**self.bits - 1).astype(np.uint8)
        return codes

    def decode(self, codes: U8, scale: F32, zero: F32) -> F32:
        """``(q - zero) * scale`` in float32, the order of onnxruntime's DequantizeLinear."""
        return (codes.astype(np.float32) - zero) * scale


def _nonzero(scale: Array) -> F32:
    """A group of zeros gets scale 1, so that its codes stand at the zero point and nothing divides by zero."""
    tiny = np.abs(scale) < np.finfo(np.float32).tiny
    return np.where(tiny, np.float32(1), scale).astype(np.float32)
