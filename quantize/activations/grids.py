"""Grids of activations: found at run time for each block or token, or once for all of a text.

::

    blocks of 32    q = round(x / s), s = max |x| / (2^(b-1) - 1)         MatMulNBits, accuracy level 4; ggml's q8_0
    a token         q = round(x / s) + z, s = (max - min) / (2^b - 1)      DynamicQuantizeLinear, one row at a time
    a tensor        the same, s and z known before                        QuantizeLinear

Ranges hold 0. What lies between two values goes to the even one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

import numpy as np

from quantize.inputs import F32, Array

BLOCK = 32  # input channels that share a scale


class Scope(StrEnum):
    """What shares a scale."""

    BLOCK = "block32"
    TOKEN = "token"
    TENSOR = "tensor"


class ActivationGrid(Protocol):
    """The values that activations are rounded to. Implementations are frozen dataclasses."""

    @property
    def bits(self) -> int:
        """Codes are below 2**bits."""

    @property
    def scope(self) -> Scope:
        """What shares a scale."""

    @property
    def static(self) -> bool:
        """Whether its params are known before anything runs."""

    def fit(self, sample: F32) -> Mapping[str, Array]:
        """Params for F32[tokens, IC]; none where they are found at run time. Raises ValueError for a sample without tokens, or
        with an infinity."""

    def round(self, x: F32, params: Mapping[str, Array]) -> F32:
        """F32[..., IC] as the runtime rounds and decodes it, bit for bit."""


@dataclass(frozen=True)
class Blocks:
    """Symmetric; a ragged last block has a scale of its own."""

    bits: int
    scope: ClassVar[Scope] = Scope.BLOCK
    static: ClassVar[bool] = False

    def fit(self, sample: F32) -> Mapping[str, Array]:
        """See ActivationGrid."""
        _checked(sample)
        return {}

    def round(self, x: F32, params: Mapping[str, Array]) -> F32:
        """See ActivationGrid."""
        most = np.float32(2 ** (self.bits - 1) - 1)
        blocks = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % BLOCK)]).reshape(*x.shape[:-1], -1, BLOCK)
        scale = np.abs(blocks).max(-1, keepdims=True) / most
        reciprocal = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
        rounded: F32 = (np.rint(blocks * reciprocal) * scale).reshape(*x.shape[:-1], -1)
        return rounded[..., : x.shape[-1]]


@dataclass(frozen=True)
class Tokens:
    """Asymmetric, of each token."""

    bits: int
    scope: ClassVar[Scope] = Scope.TOKEN
    static: ClassVar[bool] = False

    def fit(self, sample: F32) -> Mapping[str, Array]:
        """See ActivationGrid."""
        _checked(sample)
        return {}

    def round(self, x: F32, params: Mapping[str, Array]) -> F32:
        """See ActivationGrid."""
        scale, zero = _affine(x.min(-1, keepdims=True), x.max(-1, keepdims=True), self.bits)
        return _rounded(x, scale, zero, self.bits)


@dataclass(frozen=True)
class Whole:
    """Asymmetric, one scale for all: params ``scale`` F32[] and ``zero_point`` F32[], a whole number."""

    bits: int
    scope: ClassVar[Scope] = Scope.TENSOR
    static: ClassVar[bool] = True

    def fit(self, sample: F32) -> Mapping[str, Array]:
        """See ActivationGrid."""
        _checked(sample)
        scale, zero = _affine(sample.min(), sample.max(), self.bits)
        return {"scale": scale, "zero_point": zero}

    def round(self, x: F32, params: Mapping[str, Array]) -> F32:
        """See ActivationGrid."""
        return _rounded(x, params["scale"], params["zero_point"], self.bits)


def _checked(sample: F32) -> None:
    if not sample.size:
        raise ValueError("there are no tokens to fit a scale to")
    if not np.isfinite(sample).all():
        raise ValueError("a value is not finite, so no scale fits")


def _affine(low: Array, high: Array, bits: int) -> tuple[F32, F32]:
    """Scale and zero point of a range, which 0 is added to; 1 and 0 of nothing but zeros."""
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    most = np.float32(2**bits - 1)
    scale = (high - low) / most
    scale = np.where(scale > 0, scale, np.float32(1))
    zero = np.clip(np.rint(-low / scale), 0, most)
    return scale.astype(np.float32), zero.astype(np.float32)


def _rounded(x: F32, scale: Array, zero: Array, bits: int) -> F32:
    codes = np.clip(np.rint(x / scale) + zero, 0, 2**bits - 1)
    rounded: F32 = ((codes - zero) * scale).astype(np.float32)
    return rounded
