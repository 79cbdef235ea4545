"""What the source alone says of a file's tensors: their names, the floats that are kept, and how far rounding may have gone.

Tensors that a fold may have changed are left to fold_check.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from quantize.architecture.families import fold_sites
from quantize.checkpoint.protocol import Checkpoint
from quantize.model_config import EMBEDDING, HEAD, ModelSizes, block_index, block_prefix
from quantize.types import F32
from runtime_checks.measure.results import Check, within
from runtime_checks.runtimes.decoded import folded_layers, is_tuned
from runtime_checks.runtimes.exported import open_exported
from runtime_checks.runtimes.weights import CHUNK_WEIGHTS, Weights, row_chunks

EXACT = 0.0  # names are there or not, and floats that are kept have not moved
# |w - decoded| / |w| of a tensor, by the width of its codes: a quarter more than the worst measured, 1.59, 1.12, .79, .47 and .08
# at 2, 3, 4, 5 and 8 bits. These are experts of a trained model by GPTQ: channels that are hardly ever active take the errors of
# all others, as far as their groups reach. Nothing of this leads along w, so another tensor or scale shows in the slope.
ROUNDING_TOLERANCE = {2: 2.0, 3: 1.4, 4: 1.0, 5: 0.6, 6: 0.3, 8: 0.1}
# |1 - <w, decoded> / <w, w>|: rounding leaves a tensor as large as it was. The slope was .82 to 1 at 2 bits, .95 to 1 at 3, and
# within .02 of 1 beyond. A doubled scale gives 2, another tensor or rows in another order about 0.
SLOPE_TOLERANCE = 0.5

TUNING_TOLERANCE = 0.1  # of a vector's norm; tuning moves a value by a few percent at most, half a part in a thousand a step


def check_source(path: Path, source: Checkpoint) -> list[Check]:
    """Every tensor of the source is in the file once, and none besides; floats are equal, codes stand for nearly the same.

    A tensor that is larger than a decoder block is read by chunks of rows. Raises FileFormatError for a damaged file.
    """
    exported, origin = open_exported(path), {name: name for name in source.specs}
    weights, halved = exported.weights(source.config), exported.halved
    folded, tuned = folded_layers(path), is_tuned(path)
    if source.tied and HEAD in weights.shapes:
        origin[HEAD] = EMBEDDING
    checks = []
    for name in dict.fromkeys([*origin, *weights.shapes]):
        both = name in origin and name in weights.shapes
        checks.append(within("in the file and in the source, once", name, float(not both), EXACT))
        if both and not _is_folded(name, folded, source.config, weights.shapes):
            shape = source.specs[origin[name]].shape
            if weights.shapes[name] != shape:
                checks.append(within(f"shape = source's {shape}", f"{name} {weights.shapes[name]}", math.inf, EXACT))
                continue
            compare = _compare_tuned if tuned and len(shape) == 1 else partial(_compare, halved=halved)
            checks += compare(weights, name, source, origin[name])
    return checks


def _is_folded(name: str, folded: Collection[int], config: ModelSizes, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    index = block_index(name)
    sites = None if index is None or index not in folded else fold_sites(config, block_prefix(index), shapes)
    return sites is not None and name in sites.moved


def _compare(weights: Weights, name: str, source: Checkpoint, origin: str, halved: bool) -> list[Check]:
    shape = source.specs[origin].shape
    layer = sum(spec.size for other, spec in source.specs.items() if other.startswith(block_prefix(0)))
    moved, distance, along, norm = 0, 0.0, 0.0, 0.0
    widths = set[int]()
    for rows in row_chunks(shape[0], math.prod(shape[1:]), max(layer, CHUNK_WEIGHTS)):
        part, expected = weights.part(name, rows), source.read_rows(origin, rows.start, rows.stop)
        if part.dtype is not None:
            moved += int(np.count_nonzero(part.values != _as_kept(expected, part.dtype, halved)))
            continue
        widths.add(part.bits)
        distance += float(np.square(part.values - expected, dtype=np.float64).sum())
        along += float((part.values * expected).sum(dtype=np.float64))
        norm += float(np.square(expected, dtype=np.float64).sum())
    if not widths:
        return [within("values = source's", name, moved, EXACT)]
    error = math.sqrt(distance / norm) if norm else math.inf if distance else 0.0
    slope = abs(1 - along / norm) if norm else 0.0
    return [
        within("decoded = source, but for rounding", name, error, rounding_tolerance(max(widths))),
        within("decoded as large as source's", name, slope, SLOPE_TOLERANCE),
    ]


def _compare_tuned(weights: Weights, name: str, source: Checkpoint, origin: str) -> list[Check]:
    """A norm or a bias that tuning has moved a little."""
    expected = source.read(origin)
    error = float(np.linalg.norm(weights.part(name).values - expected) / max(np.linalg.norm(expected), np.finfo(np.float32).tiny))
    return [within("values = source's, but for tuning", name, error, TUNING_TOLERANCE)]


def _as_kept(values: F32, dtype: str, halved: bool) -> F32:
    """What a weight becomes that is kept as F16; BF16 is kept only of a source in BF16, and vectors are F32, unless the file
    computes in float16."""
    if dtype != "F16" or (values.ndim == 1 and not halved):
        return values
    with np.errstate(over="ignore"):  # an infinity differs from the source all the more
        return values.astype(np.float16).astype(np.float32)


def rounding_tolerance(bits: int) -> float:
    """The bound of that width, or of the next that has one: the largest code of a tensor may need fewer bits than its grid."""
    return ROUNDING_TOLERANCE[min(width for width in ROUNDING_TOLERANCE if width >= bits)]
