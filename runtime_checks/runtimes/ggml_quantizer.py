"""libggml's own quantizer and decoder of rows: what our grids are measured against."""

from __future__ import annotations

import ctypes

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from quantize.llama_cpp.library import library
from quantize.types import F32, U8


def ggml_quantize(kind: str, weight: F32, importance: F32 | None = None) -> U8:
    """``ggml_quantize_chunk`` of F32[rows, cols], with an imatrix row F32[cols] or none -> U8[rows, bytes], on one thread."""
    weight = np.ascontiguousarray(weight, np.float32)
    rows, cols = weight.shape
    out = np.empty((rows, _row_bytes(kind, cols)), np.uint8)
    row = None if importance is None else np.ascontiguousarray(importance, np.float32)
    matrix = None if row is None else row.ctypes.data
    written = library().ggml_quantize_chunk(
        GGMLQuantizationType[kind], weight.ctypes.data, out.ctypes.data, 0, rows, cols, matrix
    )
    assert written == out.nbytes, f"{kind} {rows}x{cols}: ggml wrote {written} bytes, expected {out.nbytes}"
    return out


def ggml_dequantize(kind: str, data: U8) -> F32:
    """``dequantize_row_KIND`` of U8[rows, bytes] -> F32[rows, cols]."""
    data = np.ascontiguousarray(data)
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    out = np.empty((len(data), data.shape[1] // size * block), np.float32)
    function = getattr(library(), f"dequantize_row_{kind.lower().replace('_k', '_K')}")
    function.restype, function.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    function(data.ctypes.data, out.ctypes.data, out.size)
    return out


def _row_bytes(kind: str, cols: int) -> int:
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(cols // block * size)
