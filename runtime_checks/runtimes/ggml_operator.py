"""One operator of ggml called by hand."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from quantize.llama_cpp.library import InitParams, library
from quantize.llama_cpp.model import THREADS
from quantize.types import F32, U8


def out_prod(kind: str, stored: U8, x: F32, threads: int = THREADS) -> F32:
    """libggml's own ``ggml_out_prod`` of a weight that is stored transposed, as ``NAME.weight_ic`` is.

    ``kind``: ggml type; ``stored`` U8[IC, row bytes] (rows along OC); ``x`` F32[T, IC] -> F32[T, OC] = x @ W.T.
    """
    lib = library()
    rows, cols = stored.shape[0], _row_weights(kind, stored.shape[1])
    sizes = stored.nbytes + x.nbytes + 4 * len(x) * cols
    work = 4 * (cols + 64) * threads  # out_prod unpacks one row for each thread
    memory = sizes + work + 8 * lib.ggml_tensor_overhead() + lib.ggml_graph_overhead() + 4096
    context = lib.ggml_init(InitParams(memory, None, False))
    try:
        weight = lib.ggml_new_tensor_2d(context, GGMLQuantizationType[kind], cols, rows)
        inputs = lib.ggml_new_tensor_2d(context, GGMLQuantizationType.F32, len(x), rows)
        assert lib.ggml_nbytes(weight) == stored.nbytes, f"{kind} {rows}x{cols}: ggml wants {lib.ggml_nbytes(weight)} bytes"
        _copy_in(lib.ggml_get_data(weight), stored)
        _copy_in(lib.ggml_get_data(inputs), np.ascontiguousarray(x.T, np.float32))
        product = lib.ggml_out_prod(context, weight, inputs)
        graph = lib.ggml_new_graph(context)
        lib.ggml_build_forward_expand(graph, product)
        status = lib.ggml_graph_compute_with_ctx(context, graph, threads)
        assert status == 0, f"ggml_graph_compute_with_ctx returned {status}"
        out = np.empty((len(x), cols), np.float32)
        ctypes.memmove(out.ctypes.data, lib.ggml_get_data(product), out.nbytes)
        return out
    finally:
        lib.ggml_free(context)


def _row_weights(kind: str, row_bytes: int) -> int:
    """Weights in a row of that many bytes."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(row_bytes // size * block)


def _copy_in(address: int, data: NDArray[Any]) -> None:
    data = np.ascontiguousarray(data)
    ctypes.memmove(address, data.ctypes.data, data.nbytes)
