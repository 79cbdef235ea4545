"""MatMulLevels nodes on random numbers. Pairs are packed here, by the specification alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.onnx.tiles import pack_codes, pack_scales
from quantize import Axis
from tests.exporter.custom_op.cases import FLOAT, HALF, ROUNDED, ROWS, Case

OP = "MatMulLevels"
KINDS = [(1, 2), (1, 3), (1, 4), (2, 4), (2, 6)]  # dims, bits of a code


@dataclass(frozen=True)
class Levels:
    """One node. ``most``: of a level's magnitude."""

    K: int
    N: int
    dims: int
    bits: int
    group_size: int
    axis: Axis = Axis.PER_OC
    accuracy_level: int = 0
    rows: tuple[int, ...] = (1,)
    dtype: str = "float32"
    scales: str = "float16"
    bias: bool = False
    most: int = 63

    @property
    def tolerance(self) -> float:
        if self.accuracy_level == 4:
            return ROUNDED
        return HALF if self.dtype == "float16" else FLOAT


def pack_pairs(codes: np.ndarray, bits: int) -> np.ndarray:
    """U8[N, K / 2] -> U8[tiles, blocks * lines * 64]: byte 4n + i of a line holds code i of output n's steps."""
    n, count = codes.shape
    full = np.pad(codes, [(0, -n % 16), (0, -count % 16)])
    steps = full.reshape(len(full) // 16, 16, -1, 4, 4).transpose(3, 0, 2, 1, 4)  # [step, tile, block, output, byte]
    if bits == 4:
        lines = [steps[0] | steps[1] << 4, steps[2] | steps[3] << 4]
    else:
        lines = [steps[line] | (steps[3] >> 2 * line & 3) << 6 for line in range(3)]
    return np.stack(lines, axis=2).astype(np.uint8).reshape(len(full) // 16, -1)


def dense(spec: Levels, codes: np.ndarray, scales: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """F64[N, K]."""
    per_oc = spec.axis is Axis.PER_OC
    looked = np.stack([row[codes] for row in levels.astype(np.float64)], axis=-1).reshape(len(codes), -1)
    spread = scales.astype(np.float64).repeat(spec.group_size, axis=1)[:, : spec.K if per_oc else spec.N]
    return looked * spread if per_oc else (looked * spread).T


def make_levels(spec: Levels, rng: np.random.Generator) -> Case:
    """Random codes, scales, levels and activations, the last of them with one loud channel."""
    per_oc = spec.axis is Axis.PER_OC
    rows, columns = (spec.N, spec.K) if per_oc else (spec.K, spec.N)
    codes = rng.integers(0, 1 << spec.bits, (rows, columns // spec.dims), np.uint8)
    levels = rng.integers(-spec.most, spec.most + 1, (spec.dims, 1 << spec.bits)).astype(np.int8)
    levels[:, 0] = spec.most
    scales = rng.uniform(0.0001, 0.002, (rows, -(-columns // spec.group_size))).astype(spec.scales)
    a = rng.normal(size=(*spec.rows, spec.K)).astype(spec.dtype)
    a[..., rng.integers(spec.K)] *= 8
    return case_of(spec, a, (codes, scales, levels), rng.normal(size=spec.N).astype(np.float32))


def case_of(spec: Levels, a: np.ndarray, weights: tuple[np.ndarray, ...], bias: np.ndarray) -> Case:
    codes, scales, levels = weights
    packed = pack_pairs(codes, spec.bits) if spec.dims == 2 else pack_codes(codes, spec.bits, spec.axis)
    names = ("K", "N", "bits", "group_size", "accuracy_level")
    attributes = {name: getattr(spec, name) for name in names} | {"per_oc": int(spec.axis is Axis.PER_OC), "layout": 1}
    inputs = {"A": a, "codes": packed, "scales": pack_scales(scales, spec.axis), "levels": levels}
    expected = a.astype(np.float64) @ dense(spec, codes, scales, levels).T
    if spec.bias:
        return Case(attributes, inputs | {"bias": bias}, expected + bias, OP)
    return Case(attributes, inputs, expected, OP)


SHAPES = [(70, 50, 32), (64, 96, 32), (2, 1, 32), (100, 44, 128), (46, 130, 64), (256, 16, 128), (34, 7, 4096), (576, 40, 1024)]


def levels_grid() -> list[Levels]:
    """Every kind of codes and axis in every shape at both precisions; the rest takes turns."""
    rng = np.random.default_rng(0)
    return [
        Levels(
            k,
            n,
            dims,
            bits,
            group_size,
            axis,
            accuracy_level=level,
            rows=ROWS[rng.integers(len(ROWS))],
            dtype=("float32", "float32", "float16")[rng.integers(3)],
            scales=("float16", "float32")[rng.integers(2)],
            bias=bool(rng.integers(2)),
            most=(63, 127)[rng.integers(2)],
        )
        for dims, bits in KINDS
        for axis in (Axis if dims == 1 else [Axis.PER_OC])
        for k, n, group_size in SHAPES
        for level in (0, 4)
    ]
