"""What an ONNX folder holds of one weight, read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime_checks.reference.decode import F32, U8, Array, DamagedFileError, decode_affine, decode_floats
from runtime_checks.reference.onnx_qdq import OnnxInput
from runtime_checks.reference.onnx_turn import Turn

ALL = slice(None)
I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class OnnxCodes:
    """codes U8[rows, cols]; scale F32 and zero_point U8 [rows, n_groups]; rows are OC if ``per_oc``, else IC.

    ``levels`` I8[dims, n]: the table that the file has; then ``codes`` are the levels themselves, I8, and zero points 0.
    """

    codes: Array
    scale: F32
    zero_point: U8
    group_size: int
    per_oc: bool
    levels: Array | None = None

    @property
    def bits(self) -> int:
        """Of a weight, as far as its largest code tells; of a table of levels exactly."""
        if self.levels is None:
            return int(self.codes.max()).bit_length()
        dims, count = self.levels.shape
        return (int(count).bit_length() - 1) // int(dims)

    def decode(self, oc: slice = ALL, ic: slice = ALL) -> F32:
        """F32[OC, IC], (q - z) * s, or a window of it."""
        rows, cols = (oc, ic) if self.per_oc else (ic, oc)
        group = np.arange(self.codes.shape[1])[cols] // self.group_size
        window = decode_affine(self.codes[rows, cols], self.scale[rows], self.zero_point[rows], group)
        return window if self.per_oc else window.T


@dataclass(frozen=True, eq=False)
class OnnxTensor:
    """One weight under its Hugging Face name. ``form``: a key of READERS, "qmoe" or "float"; ``shape`` (OC, IC) or (n,), of a
    stack (experts, OC, IC), whose codes lie one expert below the other."""

    name: str
    form: str
    dtype: str  # "F32", "F16", "BF16" of a float tensor, else "U8"
    shape: tuple[int, ...]
    read_codes: Callable[[slice], OnnxCodes] | None = None
    read_floats: Callable[[], Array] | None = None
    read_channels: Callable[[], I64] | None = None  # of a part: the input channels of its columns
    read_turn: Callable[[], Turn] | None = None  # of the input before it is multiplied
    accuracy_level: int = 0  # of the nodes with its codes: what they may do to their input
    read_input: Callable[[], OnnxInput] | None = None  # how that is rounded, where the graph says it

    def codes(self, rows: slice = ALL) -> OnnxCodes:
        """The stored integers of a quantized tensor, or some stored rows of them. Raises DamagedFileError."""
        assert self.read_codes is not None, f"{self.name} is stored as floats"
        return self.read_codes(rows)

    def channels(self, inputs: int) -> I64:
        """I64[n] below ``inputs``, rising: which input channels a part reads. Raises DamagedFileError for others."""
        assert self.read_channels is not None, f"{self.name} reads all"
        found = self.read_channels().astype(np.int64)
        if found.shape != self.shape[1:] or (np.diff(found) <= 0).any() or found[0] < 0 or found[-1] >= inputs:
            raise DamagedFileError(f"{self.name} reads no {self.shape[1]} of {inputs} input channels")
        return found

    def turn(self) -> Turn | None:
        """How its input is turned. Raises DamagedFileError."""
        return None if self.read_turn is None else self.read_turn()

    def input(self) -> OnnxInput | None:
        """How its input is rounded by a scale that the file holds. Raises DamagedFileError."""
        return None if self.read_input is None else self.read_input()

    def turned_back(self, weight: F32) -> F32:
        """F32[OC, IC], or some rows of it, that multiplies the turned input -> what multiplies the input. Raises as ``turn``."""
        turn = self.turn()
        return weight if turn is None else turn.back(weight)

    def values(self) -> Array:
        """The stored floats of a float tensor (BF16 as uint16 bits)."""
        assert self.read_floats is not None, f"{self.name} is quantized"
        return self.read_floats()

    def decode(self, rows: slice = ALL) -> F32:
        """The weight as F32[OC, IC] (or F32[n]), or some ``rows``."""
        if self.read_floats is None:
            return self.codes().decode(rows)
        stored = self.values()[rows]
        return decode_floats(self.dtype, stored.reshape(-1).view(np.uint8)).reshape(stored.shape)
