"""A GGUF file's tensors against three decoders, libggml and the store they were written from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from quantize.blocks import dequantize
from quantize.checkpoint.gguf_names import WEIGHT_IC, to_gguf_name
from quantize.errors import FileFormatError
from quantize.grids import GRIDS
from quantize.model_config import ModelConfig
from quantize.store import QuantizedStore
from quantize.types import F32, Array, Axis, PlainTensor, QuantizedTensor, RowOrder
from runtime_checks.decoded import open_gguf
from runtime_checks.llama_cpp import out_prod
from runtime_checks.reference import BLOCK_BYTES, matmul
from runtime_checks.reference_gguf import GgufFile, GgufTensor, decode_gguf, gguf_codes
from runtime_checks.results import Check, within

Index = NDArray[np.intp]
EXACT = 0.0  # decoders follow one formula in float32, and integers are integers: nothing may differ in any bit
# Share of sum(|x| * |w|). ggml_out_prod adds IC products one after the other in float32: sqrt(IC) roundings of 2**-24 are
# 6e-6 at 11,000 channels, while one wrong 4-bit code in 576 channels is 1e-4.
OUT_PROD_TOLERANCE = 1e-5
ROPE_TOLERANCE = 1e-6  # relative; the factors are float32 of a formula in float64
ROPE_FREQS = "rope_freqs.weight"
OUT_PROD_TOKENS = 4
CHUNK_WEIGHTS = 1 << 24  # weights decoded at a time: 64 MB for each decoder


def check_gguf(path: Path, store: QuantizedStore | None = None) -> list[Check]:
    """Every tensor decoded by the reference, our grids and gguf-py, bit for bit; with ``store``, its very codes and scales.

    Tensors that are stored transposed go through libggml's ``ggml_out_prod`` too. Raises FileFormatError for a file that
    is no GGUF, or holds tensors that no target writes.
    """
    file = open_gguf(path)
    other = _read_with_gguf_py(path, file)
    checks = []
    for name, tensor in file.tensors.items():
        checks += _check_decoders(tensor, other[name])
        if name.endswith("." + WEIGHT_IC):
            checks.append(_check_out_prod(tensor))
    return checks if store is None else checks + _check_store(path, file, store)


def _read_with_gguf_py(path: Path, file: GgufFile) -> dict[str, Any]:
    try:
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    except (ValueError, KeyError, IndexError) as error:
        raise FileFormatError(f"{path}: gguf-py cannot read it ({error}); export it again") from error
    if list(tensors) != list(file.tensors):
        raise FileFormatError(f"{path}: gguf-py lists other tensors than the reference; export it again")
    return tensors


def _row_chunks(rows: int, cols: int) -> Iterator[tuple[int, int]]:
    step = max(1, CHUNK_WEIGHTS // cols)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _check_decoders(tensor: GgufTensor, other: Any) -> list[Check]:  # noqa: ANN401 - a gguf.ReaderTensor
    """Weights that differ in any bit between the reference and gguf-py, and between the reference and our grid."""
    rows, cols = len(tensor.data), tensor.shape[-1]
    data = other.data.reshape(rows, -1)
    theirs = ours = 0
    for start, stop in _row_chunks(rows, cols):
        part = tensor.rows(start, stop)
        reference = decode_gguf(part).reshape(-1, cols)
        theirs += _differ(reference, gguf.quants.dequantize(data[start:stop], other.tensor_type))
        if tensor.kind in BLOCK_BYTES:
            ours += _differ(reference, dequantize(_as_quantized(part)))
    checks = [within("reference = gguf-py", tensor.name, theirs, EXACT)]
    if tensor.kind in BLOCK_BYTES:
        checks.append(within("reference = our grid", tensor.name, ours, EXACT))
    return checks


def _as_quantized(tensor: GgufTensor) -> QuantizedTensor:
    """The file's codes as stored rows of our own type."""
    codes, params = gguf_codes(tensor)
    grid = GRIDS[tensor.kind.lower()]
    assert not isinstance(grid, type)
    return QuantizedTensor(tensor.name, codes, Axis.PER_OC, grid, params)


def _check_out_prod(tensor: GgufTensor) -> Check:
    """``x @ W.T`` by libggml on the very bytes of the file."""
    rng = np.random.Generator(np.random.PCG64(0))
    x = rng.standard_normal((OUT_PROD_TOKENS, tensor.shape[0]), dtype=np.float32)
    weight: F32 = decode_gguf(tensor).T
    error = np.abs(out_prod(tensor.kind, tensor.data, x) - matmul(x, weight)) / np.maximum(
        matmul(np.abs(x), np.abs(weight)), np.finfo(np.float32).tiny
    )
    return within("ggml_out_prod = reference", tensor.name, float(error.max()), OUT_PROD_TOLERANCE)


def _check_store(path: Path, file: GgufFile, store: QuantizedStore) -> list[Check]:
    """Each tensor of the store once, none besides, and the numbers of each."""
    stored = {_name_in_file(store, name): name for name in store.records}
    left = set(file.tensors) - set(stored)
    checks = [_check_presence(name, 0 if name in file.tensors else 1) for name in stored]
    if store.config.rope_scaling is not None and ROPE_FREQS in left:
        left.remove(ROPE_FREQS)
        checks.append(_check_rope(decode_gguf(file.tensors[ROPE_FREQS]), store.config))
    checks += [_check_presence(name, 1) for name in sorted(left)]
    for name, source in stored.items():
        if name in file.tensors:
            checks += _compare(file.tensors[name], source, store)
    return checks


def _check_presence(name: str, error: int) -> Check:
    return within("in the file and in the store, once", name, error, EXACT)


def _name_in_file(store: QuantizedStore, name: str) -> str:
    stored = to_gguf_name(name)
    transposed = store.records[name].grid is not None and store.records[name].axis is Axis.PER_IC
    return stored.removesuffix("weight") + WEIGHT_IC if transposed else stored


def _compare(tensor: GgufTensor, name: str, store: QuantizedStore) -> list[Check]:
    """Codes and scales (and minimums) of one tensor, or its floats, as counts of what differs; infinity for another type."""
    errors: dict[str, float] = {}
    start = 0
    for part in store.chunks(name):
        count = len(part.codes if isinstance(part, QuantizedTensor) else part.values)
        rows = _rows_in_file(store, name, np.arange(start, start + count))
        for what, error in _differences(tensor, rows, part).items():
            errors[what] = errors.get(what, 0) + error
        start += count
    if start != tensor.shape[0]:
        errors = {"shape": math.inf}
    return [within(f"{what} = store's", tensor.name, error, EXACT) for what, error in errors.items()]


def _differences(tensor: GgufTensor, rows: Index, part: QuantizedTensor | PlainTensor) -> dict[str, float]:
    """How many numbers of the file's ``rows`` differ from the store's ``part``."""
    if isinstance(part, PlainTensor):
        if tensor.kind != part.dtype or tensor.shape[1:] != part.values.shape[1:] or rows.max() >= tensor.shape[0]:
            return {"values": math.inf}
        return {"values": _differ(tensor.data.view(part.values.dtype).reshape(tensor.shape)[rows], part.values)}
    if tensor.kind.lower() != part.grid.name or tensor.shape[-1] != part.codes.shape[1] or rows.max() >= len(tensor.data):
        return {"codes": math.inf}
    codes, params = gguf_codes(replace(tensor, data=tensor.data[rows]))
    assert params.keys() == part.params.keys(), f"{tensor.name}: {params.keys()} in the file, {part.params.keys()} in the store"
    return {"codes": float(_differ(codes, part.codes))} | {key: float(_differ(params[key], part.params[key])) for key in params}


def _rows_in_file(store: QuantizedStore, name: str, rows: Index) -> Index:
    """Where the file keeps those rows of the store: llama.cpp's order interleaves the two rotary halves of a head.

    Written a second time here (the writer has its own), because a mistake in one must not hide in the other.
    """
    heads = store.config.rotary_heads(name)
    if store.row_order is RowOrder.GGML or heads is None or store.records[name].axis is Axis.PER_IC:
        return rows
    size = store.records[name].shape[0] // heads
    half, place = np.divmod(rows % size, size // 2)
    moved: Index = rows - rows % size + 2 * place + half
    return moved


def _differ(left: Array, right: Array) -> int:
    """How many values differ in any bit."""
    bits = f"u{left.itemsize}"
    return int(np.count_nonzero(np.ascontiguousarray(left).view(bits) != np.ascontiguousarray(right).view(bits)))


def _check_rope(factors: F32, config: ModelConfig) -> Check:
    """Llama 3's frequency divisors: 1 for short waves, ``factor`` for long ones, a ramp between."""
    scaling = config.rope_scaling or {}
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    waves = 2 * np.pi * config.rope_theta ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    ramp = np.clip((original / waves - low) / (high - low), 0, 1)
    expected = 1 / ((1 - ramp) / factor + ramp)
    error = np.abs(factors / expected - 1).max() if factors.shape == expected.shape else math.inf
    return within("rope_freqs = the config's", ROPE_FREQS, float(error), ROPE_TOLERANCE)
