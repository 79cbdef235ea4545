"""A GGUF file's tensors against three decoders, libggml and the store they were written from."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from exporter.inspect import read_gguf_files
from quantize.blocks import dequantize
from quantize.errors import FileFormatError
from quantize.gguf.files import GgufFiles
from quantize.gguf.names import WEIGHT_IC, to_gguf_name
from quantize.store.tensors import QuantizedStore
from quantize.types import F32, U8, Array, Axis, PlainTensor, QuantizedTensor
from runtime_checks.measure.results import Check, within
from runtime_checks.reference.decode import BLOCK_BYTES, matmul
from runtime_checks.reference.gguf import GgufFile, GgufTensor, decode_gguf, gguf_codes
from runtime_checks.runtimes.ggml_operator import out_prod
from runtime_checks.runtimes.weights import ROPE_FREQS, ggml_grid, open_gguf, row_chunks

EXACT = 0.0  # decoders follow one formula in float32, and integers are integers: nothing may differ in any bit
# Share of sum(|x| * |w|). ggml_out_prod adds IC products one after the other in float32: sqrt(IC) roundings of 2**-24 are
# 6e-6 at 11,000 channels, while one wrong 4-bit code in 576 channels is 1e-4.
OUT_PROD_TOLERANCE = 1e-5
OUT_PROD_TOKENS = 4


def check_gguf(path: Path, store: QuantizedStore | None = None) -> list[Check]:
    """Every tensor decoded by the reference, our grids and gguf-py, bit for bit; with ``store``, its very codes and scales.

    Tensors that are stored transposed go through libggml's ``ggml_out_prod`` too. Raises FileFormatError for a file that
    is no GGUF, or holds tensors that no target writes.
    """
    file = open_gguf(path)
    ours = _read_with_ours(path, file)
    checks = []
    for name, tensor in file.tensors.items():
        info = ours.tensors[name]
        checks += _check_decoders(tensor, ours.bytes_of(info), info.type)
        if name.endswith("." + WEIGHT_IC):
            checks.append(_check_out_prod(tensor))
    for part in file.parts:
        trailing = max(0, part.path.stat().st_size - part.end)  # the last tensor's padding may be missing
        checks.append(within("bytes after the last tensor", part.path.name, trailing, EXACT))
    return checks if store is None else checks + _check_store(path, file, store)


def _read_with_ours(path: Path, file: GgufFile) -> GgufFiles:
    """Where the tensors lie by the parser of our sources, which must find those that the reference does."""
    ours = read_gguf_files(path)
    if [(name, info.type.name, info.shape) for name, info in ours.tensors.items()] != [
        (name, tensor.kind, tensor.shape) for name, tensor in file.tensors.items()
    ]:
        raise FileFormatError(f"{path}: our parser finds other tensors than the reference; export it again")
    return ours


def _check_decoders(tensor: GgufTensor, stored: U8, kind: gguf.GGMLQuantizationType) -> list[Check]:
    """Weights that differ in any bit between the reference and gguf-py, and between the reference and our grid.

    ``stored``: the tensor's bytes where our parser finds them.
    """
    rows, cols = len(tensor.data), tensor.shape[-1]
    data = stored.reshape(rows, -1)
    theirs = ours = 0
    for chunk in row_chunks(rows, cols):
        part = tensor.rows(chunk.start, chunk.stop)
        reference = decode_gguf(part).reshape(-1, cols)
        theirs += _differ(reference, gguf.quants.dequantize(data[chunk], kind).reshape(-1, cols))
        if tensor.kind in BLOCK_BYTES:
            ours += _differ(reference, dequantize(_as_quantized(part)))
    checks = [within("reference = gguf-py", tensor.name, theirs, EXACT)]
    if tensor.kind in BLOCK_BYTES:
        checks.append(within("reference = our grid", tensor.name, ours, EXACT))
    return checks


def _as_quantized(tensor: GgufTensor) -> QuantizedTensor:
    """The file's codes as stored rows of our own type."""
    codes, params = gguf_codes(tensor)
    return QuantizedTensor(tensor.name, codes, Axis.PER_OC, ggml_grid(tensor.kind), params)


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
    names = [*stored, *sorted(set(file.tensors) - set(stored) - {ROPE_FREQS})]
    checks = [_check_presence(name, float(not (name in stored and name in file.tensors))) for name in names]
    for name, source in stored.items():
        if name in file.tensors:
            checks += _compare(file.tensors[name], source, store)
    return checks


def _check_presence(name: str, error: float) -> Check:
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
        stop = start + len(part.codes if isinstance(part, QuantizedTensor) else part.values)
        for what, error in _differences(tensor, slice(start, stop), part).items():
            errors[what] = errors.get(what, 0) + error
        start = stop
    whole = tensor.shape[0] if store.records[name].grid is None else len(tensor.data)  # of a stack all experts' rows
    if start != whole:
        errors = {"shape": math.inf}
    return [within(f"{what} = store's", tensor.name, error, EXACT) for what, error in errors.items()]


def _differences(tensor: GgufTensor, rows: slice, part: QuantizedTensor | PlainTensor) -> dict[str, float]:
    """How many numbers of the file's ``rows`` differ from the store's ``part``."""
    if isinstance(part, PlainTensor):
        if tensor.kind != part.dtype or tensor.shape[1:] != part.values.shape[1:] or rows.stop > tensor.shape[0]:
            return {"values": math.inf}
        return {"values": _differ(tensor.data.view(part.values.dtype).reshape(tensor.shape)[rows], part.values)}
    if tensor.kind.lower() != part.grid.name or tensor.shape[-1] != part.codes.shape[1] or rows.stop > len(tensor.data):
        return {"codes": math.inf}
    codes, params = gguf_codes(replace(tensor, data=tensor.data[rows]))
    assert params.keys() == part.params.keys(), f"{tensor.name}: {params.keys()} in the file, {part.params.keys()} in the store"
    return {"codes": float(_differ(codes, part.codes))} | {key: float(_differ(params[key], part.params[key])) for key in params}


def _differ(left: Array, right: Array) -> int:
    """How many values differ in any bit."""
    bits = f"u{left.itemsize}"
    return int(np.count_nonzero(np.ascontiguousarray(left).view(bits) != np.ascontiguousarray(right).view(bits)))
