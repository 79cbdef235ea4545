"""From a QuantizedStore to files. A writer is imported when it is first asked for: each needs libraries that the other does not.

``exporter.inspect.inspect`` tells what a file holds; it is not repeated here, where the name is its module's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import quantize.telemetry  # noqa: F401 - switches off what other libraries report, before one is loaded

if TYPE_CHECKING:
    from exporter.bundle.folder import BundleOptions, write_bundle
    from exporter.gguf.file import write_gguf
    from exporter.onnx.file import write_onnx
    from exporter.onnx.library import add_library, custom_op_path
    from exporter.targets import TARGETS

__all__ = ["TARGETS", "BundleOptions", "add_library", "custom_op_path", "write_bundle", "write_gguf", "write_onnx"]

_HOMES = {
    "TARGETS": "targets",
    "BundleOptions": "bundle.folder",
    "add_library": "onnx.library",
    "custom_op_path": "onnx.library",
    "write_bundle": "bundle.folder",
    "write_gguf": "gguf.file",
    "write_onnx": "onnx.file",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'exporter' has no attribute {name!r}")
    return getattr(import_module(f"exporter.{_HOMES[name]}"), name)
