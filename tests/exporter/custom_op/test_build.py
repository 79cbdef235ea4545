"""The built files: what a phone's loader and an older onnxruntime find in them."""

from __future__ import annotations

import ctypes
import re
import subprocess

import pytest

from tests.native import built, library

ANDROID_PAGE = 16 * 1024
OLDEST_API = 17  # ONNX Runtime 1.17, the first with KernelContext_ParallelFor
C_LIBRARY = re.compile(r"lib(c|m)\.so\.6|ld-linux-.*")
PRESETS = ["host", "linux-arm64"]


def readelf(preset: str, *options: str) -> str:
    path = built(f"build/custom_op/{preset}/libadadim_ort.so")
    return subprocess.run(["readelf", "-W", *options, path], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("preset", PRESETS)
def test_segments_fit_pages_of_16_kib(preset):
    aligned = [int(line.split()[-1], 16) for line in readelf(preset, "--segments").splitlines() if line.split()[:1] == ["LOAD"]]
    assert aligned and all(value % ANDROID_PAGE == 0 for value in aligned)


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_needed_but_the_c_library(preset):
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", readelf(preset, "--dynamic"))
    assert needed and all(C_LIBRARY.fullmatch(name) for name in needed), needed


@pytest.mark.parametrize("preset", PRESETS)
def test_only_the_entry_point_is_exported(preset):
    table = (line.split() for line in readelf(preset, "--dyn-syms").splitlines())
    exported = [row[7] for row in table if len(row) == 8 and row[4] in ("GLOBAL", "WEAK") and row[6] != "UND"]
    assert exported == ["RegisterCustomOps"]


def test_it_asks_for_the_oldest_api_that_serves():
    """An onnxruntime that does not have that one gives no API at all, and the model's own body runs."""
    asked = []
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(lambda version: asked.append(version))
    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p).value, None)  # OrtApiBase
    register = ctypes.CDLL(str(library())).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, base) is None
    assert asked == [OLDEST_API]
