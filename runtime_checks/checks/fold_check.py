"""Layers whose channels were scaled or reordered before rounding, against the source: by what they compute, not tensor by tensor.

No record of the folds is trusted. What they leave as it is follows from the decoder alone: q and k after their norm, the values
of each head through o, and the MLP with its ``silu`` left out, which is linear in gate x and in up x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quantize.architecture.families import FoldSites, bias_of, fold_sites
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


def check_folds(path: Path, source: Checkpoint) -> list[Check]:
    """Every layer that the file says was folded. Raises FileFormatError for a damaged file."""
    layers = sorted(folded_layers(path))
    if not layers:
        return []
    weights, checks = open_exported(path).weights(source.config), list[Check]()
    check_shapes(path, source.config, weights)
    for index in layers:
        prefix = block_prefix(index)
        sites = fold_sites(source.config, prefix)
        if sites is None:
            raise FileFormatError(f"{path}: says that its blocks were folded, which is known of no {source.config.model_type}")
        parts = {name: weights.part(name) for name in weights.shapes if name.startswith(prefix)}
        probes = np.random.default_rng(index).standard_normal((2, source.config.hidden_size, PROBES), dtype=np.float32)
        held = _outputs({name: part.values for name, part in parts.items()}, sites, probes)
        expected = _outputs({name: source.read(name) for name in parts}, sites, probes)
        for key, linears in _paths(sites).items():
            tolerance = _tolerance([parts[linear] for linear in linears])
            error, slope = _compare(held[key], expected[key])
            checks.append(within("decoded path = source's, but for rounding", prefix + key, error, tolerance))
            checks.append(within("decoded path as large as source's", prefix + key, slope, SLOPE_TOLERANCE))
    return checks


def _paths(at: FoldSites) -> dict[str, tuple[str, ...]]:
    """What is compared, and the weights on the way."""
    _, (q, k, _) = _attention(at)
    return {"q": (q,), "k": (k,), "values": (at.value, at.output), "mlp": (at.gate, at.up, at.down)}


def _attention(at: FoldSites) -> tuple[str, tuple[str, ...]]:
    """The norm before attention, and what reads it."""
    return next((norm, linears) for norm, linears in at.norms.items() if at.value in linears)


def _outputs(tensors: Mapping[str, F32], at: FoldSites, probes: F32) -> dict[str, F32]:
    """By the keys of ``_paths``, for inputs F32[2, hidden, PROBES]: F32[parts, n, PROBES], every part as right as the next."""

    def linear(weight: str, x: F32) -> F32:
        return tensors[weight] @ x + tensors.get(bias_of(weight), np.zeros(1, np.float32))[:, None]

    norm, (q, k, _) = _attention(at)
    normed, after = tensors[norm][:, None] * probes[0], next(name for name in at.norms if name != norm)
    values = linear(at.value, normed).reshape(at.kv_heads, 1, at.head_dim, PROBES)
    hidden, heads = len(tensors[at.output]), tensors[at.output].shape[1] // at.head_dim
    output = tensors[at.output].reshape(hidden, at.kv_heads, -1, at.head_dim)
    first, second = tensors[after][:, None] * probes
    return {
        "q": linear(q, normed)[None],
        "k": linear(k, normed)[None],
        "values": (output.transpose(1, 2, 0, 3) @ values).reshape(heads, hidden, PROBES),
        "mlp": linear(at.down, linear(at.gate, first) * linear(at.up, second))[None],
    }


def _compare(held: F32, expected: F32) -> tuple[float, float]:
    """Of F32[parts, n, PROBES]: the largest error of a part relative to it, and how far its slope is from 1."""
    axes = (1, 2)
    square = np.square(expected, dtype=np.float64).sum(axes)
    error = np.sqrt(np.square(held - expected, dtype=np.float64).sum(axes) / square)
    slope = (held * expected).sum(axes, dtype=np.float64) / square
    return float(error.max()), float(np.abs(slope - 1).max())


def _tolerance(parts: list[Part]) -> float:
    """Errors of rounding are independent of one another."""
    return math.hypot(FLOAT_TOLERANCE, *(rounding_tolerance(part.bits) for part in parts if part.dtype is None))
