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
# |w - decoded| / |w| of a tensor, by the width of its codes. Twice the scale gives 1 or more, another tensor or rows in another
# order about 1.4. At 2 bits, 1 is what nearest rounding cannot exceed: a code stands for 0, so no weight moves further than
# that. The others are about twice the worst measured, GPTQ by min-max over whole channels with outliers: .91, .53, .31 and .02
# at 2, 3, 4 and 8 bits; each further bit halves it.
ROUNDING_TOLERANCE = {2: 1.0, 3: 0.85, 4: 0.6, 5: 0.3, 6: 0.2, 8: 0.1}

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
            checks.append(compare(weights, name, source, origin[name]))
    return checks


def _is_folded(name: str, folded: Collection[int], config: ModelSizes, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    index = block_index(name)
    sites = None if index is None or index not in folded else fold_sites(config, block_prefix(index), shapes)
    return sites is not None and name in sites.moved


def _compare(weights: Weights, name: str, source: Checkpoint, origin: str, halved: bool) -> Check:
    shape = source.specs[origin].shape
    layer = sum(spec.size for other, spec in source.specs.items() if other.startswith(block_prefix(0)))
    moved, distance, norm = 0, 0.0, 0.0
    widths = set[int]()
    for rows in row_chunks(shape[0], math.prod(shape[1:]), max(layer, CHUNK_WEIGHTS)):
        part, expected = weights.part(name, rows), source.read_rows(origin, rows.start, rows.stop)
        if part.dtype is not None:
            moved += int(np.count_nonzero(part.values != _as_kept(expected, part.dtype, halved)))
            continue
        widths.add(part.bits)
        distance += float(np.square(part.values - expected, dtype=np.float64).sum())
        norm += float(np.square(expected, dtype=np.float64).sum())
    if not widths:
        return within("values = source's", name, moved, EXACT)
    error = math.sqrt(distance / norm) if norm else math.inf if distance else 0.0
    return within("decoded = source, but for rounding", name, error, rounding_tolerance(max(widths)))


def _compare_tuned(weights: Weights, name: str, source: Checkpoint, origin: str) -> Check:
    """A norm or a bias that tuning has moved a little."""
    expected = source.read(origin)
    error = float(np.linalg.norm(weights.part(name).values - expected) / max(np.linalg.norm(expected), np.finfo(np.float32).tiny))
    return within("values = source's, but for tuning", name, error, TUNING_TOLERANCE)


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
