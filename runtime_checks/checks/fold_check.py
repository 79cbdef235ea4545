"""Layers whose channels were scaled or reordered before rounding, against the source: by what they compute, not tensor by tensor.

No record of the folds is trusted. What they leave as it is follows from the decoder alone: q and k after their norm, the values
of each head through o, and the MLP with its ``silu`` left out, which is linear in gate x and in up x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quantize.architecture.families import FoldSites, Rows, bias_of, fold_sites
from quantize.checkpoint.protocol import Checkpoint
from quantize.errors import FileFormatError
from quantize.model_config import block_prefix
from quantize.types import F32
from runtime_checks.checks.source_check import SLOPE_TOLERANCE, rounding_tolerance
from runtime_checks.measure.results import Check, within
from runtime_checks.runtimes.decoded import check_shapes, folded_layers
from runtime_checks.runtimes.exported import open_exported
from runtime_checks.runtimes.weights import Part

PROBES = 16  # random inputs: an error's norm is met within a tenth
FLOAT_TOLERANCE = 1e-5  # folded floats and sums in another order, float32
HALF_TOLERANCE = 2.0**-10  # a folded norm and a bias, each rounded to float16


def check_folds(path: Path, source: Checkpoint) -> list[Check]:
    """Every layer that the file says was folded. Raises FileFormatError for a damaged file."""
    layers = sorted(folded_layers(path))
    if not layers:
        return []
    exported, checks = open_exported(path), list[Check]()
    weights, floats = exported.weights(source.config), HALF_TOLERANCE if exported.halved else FLOAT_TOLERANCE
    check_shapes(path, source.config, weights)
    for index in layers:
        prefix = block_prefix(index)
        sites = fold_sites(source.config, prefix, weights.shapes)
        if sites is None:
            raise FileFormatError(f"{path}: says that its blocks were folded, which is known of no {source.config.model_type}")
        parts = {name: weights.part(name) for name in weights.shapes if name.startswith(prefix)}
        probes = np.random.default_rng(index).standard_normal((2, source.config.hidden_size, PROBES), dtype=np.float32)
        held = _paths({name: part.values for name, part in parts.items()}, sites, probes)
        expected = _paths({name: source.read(name) for name in parts}, sites, probes)
        for key, (passed, output) in held.items():
            error, slope = _compare(output, expected[key].output)
            tolerance = _tolerance(floats, [parts[name] for name in passed])
            checks.append(within("decoded path = source's, but for rounding", prefix + key, error, tolerance))
            checks.append(within("decoded path as large as source's", prefix + key, slope, SLOPE_TOLERANCE))
    return checks


class _Path(NamedTuple):
    """Weights on the way, and what comes out, F32[parts, n, PROBES], every part as right as the next."""

    weights: tuple[str, ...]
    output: F32


def _paths(tensors: Mapping[str, F32], at: FoldSites, probes: F32) -> dict[str, _Path]:
    """What no fold changes, for inputs F32[2, hidden, PROBES]: other linears behind norms, ``values`` and ``mlp``."""

    def linear(rows: Rows, x: F32) -> F32:
        bias = tensors.get(bias_of(rows.weight))
        made = tensors[rows.weight][rows.of] @ x
        return made if bias is None else made + bias[rows.of][:, None]

    def before(weight: str, probe: F32) -> F32:
        """What that linear reads, the norm before it without its division."""
        norm = next((norm for norm, linears in at.norms.items() if weight in linears), None)
        return probe if norm is None else (tensors[norm] + np.float32(at.gain_offset))[:, None] * probe

    out = dict[str, _Path]()
    for weight in (weight for linears in at.norms.values() for weight in linears):
        kept = Rows(weight, 0, min([len(tensors[weight]), *(rows.start for rows in at.made if rows.weight == weight)]))
        if kept.stop:
            out[weight.split(".")[-2]] = _Path((weight,), linear(kept, before(weight, probes[0]))[None])
    gate, up, down = at.mlp
    product = linear(gate, before(gate.weight, probes[0])) * linear(up, before(up.weight, probes[1]))
    out["mlp"] = _Path((gate.weight, up.weight, down), (tensors[down] @ product)[None])
    if at.values is not None:
        value, name, kv_heads, head_dim = at.values
        values = linear(value, before(value.weight, probes[0])).reshape(kv_heads, 1, head_dim, PROBES)
        read = tensors[name].reshape(len(tensors[name]), kv_heads, -1, head_dim)
        per_head = read.transpose(1, 2, 0, 3) @ values
        out["values"] = _Path((value.weight, name), per_head.reshape(-1, *per_head.shape[2:]))
    return out


def _compare(held: F32, expected: F32) -> tuple[float, float]:
    """Of F32[parts, n, PROBES]: the largest error of a part relative to it, and how far its slope is from 1."""
    axes = (1, 2)
    square = np.square(expected, dtype=np.float64).sum(axes)
    error = np.sqrt(np.square(held - expected, dtype=np.float64).sum(axes) / square)
    slope = (held * expected).sum(axes, dtype=np.float64) / square
    return float(error.max()), float(np.abs(slope - 1).max())


def _tolerance(floats: float, parts: list[Part]) -> float:
    """Errors of rounding are independent of one another."""
    return math.hypot(floats, *(rounding_tolerance(part.bits) for part in parts if part.dtype is None))
