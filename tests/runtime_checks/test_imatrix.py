"""The importance matrix that we write, opened by llama.cpp's own GGUF reader as its loader of importance matrices does it."""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_char_p, c_int64, c_size_t, c_void_p

import numpy as np
import pytest

from quantize import DataSpec, open_checkpoint
from quantize.llama_cpp.library import library
from quantize.statistics.imatrix import make_imatrix, read_imatrix
from tests.tiny import make_tiny_model

F32, STRING = 0, 8  # enum ggml_type; enum gguf_type


class InitParams(ctypes.Structure):
    """struct gguf_init_params."""

    _fields_ = (("no_alloc", c_bool), ("ctx", c_void_p))


def bind(name, result, *arguments):
    function = getattr(library(), name)
    function.restype, function.argtypes = result, arguments
    return function


@pytest.fixture
def opened(tmp_path):
    """The file's bytes, and llama.cpp's handle of it."""
    path = tmp_path / "imatrix.gguf"
    make_imatrix(open_checkpoint(make_tiny_model(tmp_path / "m")), path, DataSpec(tokens=512))
    handle = bind("gguf_init_from_file", c_void_p, c_char_p, InitParams)(str(path).encode(), InitParams(True, None))
    assert handle
    yield path, handle
    bind("gguf_free", None, c_void_p)(handle)


def test_llama_cpp_reads_the_sums_and_the_counts(opened):
    path, handle = opened
    data, start = path.read_bytes(), bind("gguf_get_data_offset", c_size_t, c_void_p)(handle)
    find, offset = (
        bind("gguf_find_tensor", c_int64, c_void_p, c_char_p),
        bind("gguf_get_tensor_offset", c_size_t, c_void_p, c_int64),
    )
    kind, size = (bind(f"gguf_get_tensor_{part}", c_size_t, c_void_p, c_int64) for part in ("type", "size"))
    entries = read_imatrix(path).entries
    assert bind("gguf_get_n_tensors", c_int64, c_void_p)(handle) == 2 * len(entries) == 28
    for name, stats in entries.items():
        found = []
        for part in ("in_sum2", "counts"):
            index = find(handle, f"{name}.{part}".encode())
            assert index >= 0 and kind(handle, index) & 0xFFFFFFFF == F32
            found.append(np.frombuffer(data, "<f4", size(handle, index) // 4, start + offset(handle, index)))
        assert np.array_equal(found[0] / found[1], stats.squares)


def test_llama_cpp_finds_the_metadata_without_which_it_refuses(opened):
    _, handle = opened
    find = bind("gguf_find_key", c_int64, c_void_p, c_char_p)
    number = bind("gguf_get_val_u32", ctypes.c_uint32, c_void_p, c_int64)
    assert bind("gguf_get_arr_type", ctypes.c_int, c_void_p, c_int64)(handle, find(handle, b"imatrix.datasets")) == STRING
    assert [number(handle, find(handle, f"imatrix.chunk_{part}".encode())) for part in ("count", "size")] == [1, 512]
