"""``__all__`` is the public surface: real, documented, importable without the heavy libraries (ruff keeps it sorted)."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

PACKAGES = ("quantize", "exporter", "runtime_checks")


@pytest.mark.parametrize("name", PACKAGES)
def test_all_names_exist_once(name):
    package = importlib.import_module(name)
    assert len(package.__all__) == len(set(package.__all__))
    assert all(hasattr(package, item) for item in package.__all__)


@pytest.mark.parametrize("name", PACKAGES)
def test_everything_public_is_documented(name):
    package = importlib.import_module(name)
    items = {item: getattr(package, item) for item in package.__all__}
    assert not [item for item, value in items.items() if callable(value) and not inspect.getdoc(value)]


def test_the_steps_of_the_command_line_are_there():
    import exporter
    import quantize

    assert {"QuantizeConfig", "open_checkpoint", "quantize_checkpoint"} <= set(quantize.__all__)
    assert {"TARGETS", "write_gguf", "write_onnx"} <= set(exporter.__all__)


@pytest.mark.parametrize("name", ["quantize", "exporter", "exporter.cli.main"])
def test_importing_pulls_in_no_runtime(name):
    code = (
        f"import {name}, sys; print([m for m in ('torch', 'transformers', 'onnx', 'onnxruntime', 'mobius') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "dear"),
    [
        ("quantize.child", ("numpy", "quantize.grids", "quantize.checkpoint")),
        ("quantize.checkpoint.tokenizing", ("gguf", "quantize.grids", "quantize.llama_cpp")),
    ],
)
def test_a_child_starts_with_what_it_needs(name, dear):
    """Each check of a file starts several: none pays for grids and containers that it does not ask for."""
    code = f"import {name}, sys; print([m for m in {dear} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"
