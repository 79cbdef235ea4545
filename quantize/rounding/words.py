"""Input channels rounded several at a time: where a word of neighbouring codes is stored, GPTQ and its polish choose it as a whole.

What errors d of a word's channels cost, once later channels make up for them, is a form d' M d: M = (U' U)^-1 of their own
corner U of GPTQ's factor, or the Hessian's corner for the polish, which holds all others. The nearest word under a diagonal is
found at once (``Grid.encode``). Under M it is looked for from there: M <= D for a diagonal D, so the word nearest to
q + D^-1 M (c - q) under D costs no more than q does, c being what is wanted.
"""

from __future__ import annotations

import numpy as np

from quantize.types import F32, U8, Channels, Grid

TURNS = 4


def round_words(these: Channels, grid: Grid, metric: F32) -> None:
    """All channels, each word less the steps of those before; ``metric`` F32[n, n], of which each word's own corner is used."""
    dims = grid.formula.dims
    for start in range(0, len(these.wanted), dims):
        own = slice(start, start + dims)
        wanted = these.wanted[own] - these.mix[own, :start] @ these.steps[:start]
        corner = metric[own, own]
        if len(these.held):  # each was wanted with all others held: here with those of other words
            held = these.held[own]
            wanted = held - np.linalg.solve(corner, corner.diagonal()[:, None] * (held - wanted))
        codes, values = nearest_word(grid, wanted, these.scale[own], corner)
        these.codes[own], these.values[own] = codes, values
        mixed = np.tril(these.mix[own, own], -1) + np.eye(len(corner), dtype=np.float32)
        these.steps[own] = these.held[own] - values if len(these.held) else np.linalg.solve(mixed, wanted - values)


def nearest_word(grid: Grid, wanted: F32, scale: F32, metric: F32) -> tuple[U8, F32]:
    """(codes U8[dims, n], values F32[dims, n]) near to ``wanted`` F32[dims, n] under ``metric`` F32[dims, dims]."""
    diagonal = np.ascontiguousarray(metric.diagonal())
    root = np.sqrt(diagonal)
    bound = diagonal * np.float32(np.linalg.eigvalsh(metric / np.outer(root, root))[-1])
    best_codes, best_values, best = _tried(grid, wanted, scale, diagonal, wanted, metric)
    for _ in range(TURNS):
        target = best_values + (metric @ (wanted - best_values)) / bound[:, None]
        codes, values, cost = _tried(grid, target, scale, bound, wanted, metric)
        better = cost < best
        if not better.any():
            break
        best_codes, best_values, best = (
            np.where(better, new, old) for new, old in ((codes, best_codes), (values, best_values), (cost, best))
        )
    return best_codes, best_values


def _tried(grid: Grid, target: F32, scale: F32, weights: F32, wanted: F32, metric: F32) -> tuple[U8, F32, F32]:
    codes = grid.encode(target.T, scale.T, np.zeros(1, np.float32), weights).T
    values = grid.decode(codes, scale, np.zeros(1, np.float32))
    error = wanted - values
    return codes, values, np.einsum("in,in->n", error, metric @ error)
