"""Write a store as a folder for onnxruntime and onnxruntime-genai: plan the whole file, then pour one chunk at a time.

::

    DIR/model.onnx           graph, small constants, metadata; external data below
    DIR/model.onnx.data      codes, scales, zero points, norms, rotary tables
    DIR/genai_config.json    and the tokenizer's files
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

from exporter.onnx_genai import write_genai_files
from exporter.onnx_graph import exported_context
from exporter.onnx_plan import DATA_FILE, OnnxPlan, plan_onnx
from quantize.errors import OutputError
from quantize.store import QuantizedStore
from quantize.types import PlainTensor

MODEL_FILE = "model.onnx"


def write_onnx(
    store: QuantizedStore, out_dir: Path, *, accuracy_level: int = 4, context: int = 4096, force: bool = False
) -> Path:
    """Write the folder ``out_dir`` (through a sibling that takes its name at the end) and return it.

    ``accuracy_level``: 0 leaves activations alone, 4 lets the kernels round them to 8 bits (fast). ``context``: positions
    for which rotary tables are written, cut to the model's own limit. Raises OutputError if ``out_dir`` exists and not
    ``force``, or cannot be written; ExportError for what ONNX cannot hold.
    """
    if out_dir.exists() and not force:
        raise OutputError(f"{out_dir}: exists already; name another --out or pass --force")
    partial = out_dir.with_name(out_dir.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_folder(store, partial, accuracy_level, exported_context(store.config, context))
        if out_dir.is_dir():
            shutil.rmtree(out_dir)
        partial.replace(out_dir)
    except OSError as error:
        raise OutputError(
            f"{out_dir}: cannot be written ({error.strerror or error}); free space or choose another --out"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out_dir


def _write_folder(store: QuantizedStore, directory: Path, accuracy_level: int, context: int) -> None:
    plan = plan_onnx(store, accuracy_level, context)
    with (directory / DATA_FILE).open("wb") as file:
        _pour(plan, store, file)
    (directory / MODEL_FILE).write_bytes(plan.model.SerializeToString(deterministic=True))
    write_genai_files(store, directory, context)


def _pour(plan: OnnxPlan, store: QuantizedStore, file: BinaryIO) -> None:
    """Every initializer's bytes at its offset; gaps are zeros."""
    file.truncate(plan.size)
    written = 0
    for name, forms in plan.forms.items():
        row = 0
        for chunk in store.chunks(name):
            for initializer, offset, data in (piece for form in forms for piece in form.pour(row, chunk)):
                file.seek(plan.offsets[initializer] + offset)
                written += file.write(data)
            row += len(chunk.values if isinstance(chunk, PlainTensor) else chunk.codes)
    for name, value in plan.constants.items():
        file.seek(plan.offsets[name])
        written += file.write(value.tobytes())
    assert written == plan.planned, (written, plan.planned)
