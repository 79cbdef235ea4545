"""The kernel of MatMulAdaDim as a library that onnxruntime loads. Needs no onnx library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from exporter.onnx.genai_reader import read_genai
from quantize.errors import ConfigError, ExportError, FileFormatError, asked
from quantize.store.outputs import new_file
from quantize.store.tensors import QuantizedStore
from quantize.template.onnx_genai import GENAI_FILE

LIBRARY = "libadadim_ort.so"


def custom_op_path() -> Path:
    """The library that was built when this package was installed. Raises ExportError if there is none."""
    path = Path(__file__).parent.parent / "custom_op" / LIBRARY
    if not path.is_file():
        raise ExportError(
            f"{path}: not built; fetch ONNX Runtime's headers with tools/fetch_runtime_sdk.py and install again where cmake, "
            "a C++ compiler and Google Highway are (docs/reference/custom-op.md), or do without: the portable body gives the same"
        )
    return path


def library_of(store: QuantizedStore) -> Path:
    """The library for a store's file. Raises ConfigError if the file would not use it, ExportError if there is none."""
    if store.target != "onnxruntime+adadim":
        raise ConfigError(
            f"{asked('with_library')}: {store.path} was quantized for {store.target}; only onnxruntime+adadim has a library"
        )
    return custom_op_path()


def add_library(folder: Path, library: Path | None = None) -> None:
    """Copy a library (default: this machine's) into an exported folder and name it in its genai_config.json.

    genai refuses a folder that names a library which isn't there, so the copy comes first. Raises ExportError.
    """
    library = library or custom_op_path()
    path = folder / GENAI_FILE
    try:
        _, config = read_genai(folder)
    except FileFormatError as error:
        raise ExportError(str(error)) from error
    config["model"]["decoder"]["session_options"]["custom_ops_library"] = LIBRARY
    with library.open("rb") as source, new_file(folder / LIBRARY, force=True) as file:
        shutil.copyfileobj(source, file)
    with new_file(path, force=True) as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())
