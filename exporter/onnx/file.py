"""Write a store as a folder for onnxruntime and onnxruntime-genai: plan the whole file, then pour one chunk at a time.

::

    DIR/model.onnx           graph, small constants, metadata; external data below
    DIR/model.onnx.data      codes, scales, zero points, norms, rotary tables
    DIR/genai_config.json    and the tokenizer's files
    DIR/libadadim_ort.so     if add_library put it there
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from exporter.onnx.genai import write_genai_files
from exporter.onnx.genai_tokenizer import TOKENIZER_FILES
from exporter.onnx.graph import exported_context
from exporter.onnx.library import LIBRARY
from exporter.onnx.plan import DATA_SEAL, FILES_SEAL, GRAPH_SEAL, PRODUCER, OnnxPlan, plan_onnx
from exporter.onnx.preflight import check_onnx
from exporter.onnx.sums import reads_of
from exporter.targets import ONNX_TARGETS, check_target
from quantize.errors import FileFormatError
from quantize.onnx.reader import MODEL_FILE, parse_model
from quantize.onnx.template import DATA_FILE
from quantize.outside import sha256_of
from quantize.progress import track
from quantize.store.outputs import Unfinished, check_folder
from quantize.store.seal import OPEN, closed
from quantize.store.tensors import QuantizedStore
from quantize.template.onnx_genai import GENAI_FILE
from quantize.types import PlainTensor

VALUE_OF_SEAL = bytes((2 << 3 | 2, len(OPEN)))  # protobuf: field 2 of a metadata entry, of so many bytes
FILES = (MODEL_FILE, DATA_FILE, GENAI_FILE, LIBRARY, *TOKENIZER_FILES)


def write_onnx(
    store: QuantizedStore, out_dir: Path, *, accuracy_level: int = 4, context: int = 4096, force: bool = False
) -> Path:
    """Write the folder ``out_dir`` (through a sibling that takes its name at the end) and return it.

    ``accuracy_level``: 0 leaves activations alone, 4 lets the kernels round them to 8 bits (fast). ``context``: positions
    for which rotary tables are written, cut to the model's own limit. Raises OutputError if ``out_dir`` exists and not
    ``force``, is neither empty nor an export without other files, or cannot be written; ExportError for what ONNX
    cannot hold.
    """
    check_target(store, ONNX_TARGETS)
    check_onnx_output(out_dir, force)
    check_onnx(store.config, store.asset_names(), str(store.path))
    with Unfinished(out_dir, True, force, _foreign) as unfinished:
        _write_folder(store, unfinished.path, accuracy_level, exported_context(store.config, context))
        unfinished.finish()
    return out_dir


def onnx_size(store: QuantizedStore, accuracy_level: int = 4, context: int = 4096) -> int:
    """Bytes of the two model files that ``write_onnx`` would write, from the store's headers alone. Raises ExportError."""
    plan = plan_onnx(store, accuracy_level, exported_context(store.config, context))
    return int(plan.model.ByteSize()) + plan.size


def check_onnx_output(out_dir: Path, force: bool) -> None:
    """Raises OutputError for what ``write_onnx`` would not replace."""
    check_folder(out_dir, force, _foreign)


def _foreign(folder: Path) -> str | None:
    """Why a folder was not written here, or holds what was not."""
    try:
        producer = parse_model(folder / MODEL_FILE).producer_name
    except FileFormatError:
        return f"has no {MODEL_FILE} of an earlier export"
    if producer != PRODUCER:
        return f"{MODEL_FILE} in it was not written by {PRODUCER}"
    names = sorted(item.name for item in folder.iterdir())
    return next((f"{name} in it is no part of an export" for name in names if name not in FILES), None)


def _write_folder(store: QuantizedStore, directory: Path, accuracy_level: int, context: int) -> None:
    plan = plan_onnx(store, accuracy_level, context)
    with (directory / DATA_FILE).open("wb") as file:
        _pour(plan, store, file)
    write_genai_files(store, directory, context)
    digests = {DATA_SEAL: sha256_of(directory / DATA_FILE), FILES_SEAL: _digest_of_files(directory)}
    for entry in plan.model.metadata_props:
        entry.value = digests.get(entry.key, entry.value)
    model = plan.model.SerializeToString(deterministic=True)
    (directory / MODEL_FILE).write_bytes(closed(model, GRAPH_SEAL.encode() + VALUE_OF_SEAL))


def _digest_of_files(directory: Path) -> str:
    """Of the tokenizer's files that are there: name and digest of each, as sha256sum writes them."""
    lines = [f"{sha256_of(directory / name)}  {name}\n" for name in TOKENIZER_FILES if (directory / name).is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _pour(plan: OnnxPlan, store: QuantizedStore, file: BinaryIO) -> None:
    """Every initializer's bytes at its offset; gaps are zeros."""
    file.truncate(plan.size)
    written = 0
    for name, forms in track(plan.forms.items(), "writing ONNX", len(plan.forms)):
        row = 0
        for chunk in store.chunks(name):
            for initializer, offset, data in (piece for form in forms for piece in form.pour(row, chunk)):
                file.seek(plan.offsets[initializer] + offset)
                written += file.write(data)
            row += len(chunk.values if isinstance(chunk, PlainTensor) else chunk.codes)
        reads = store.reads(name)
        if reads is not None:
            file.seek(plan.offsets[reads_of(store.records[name]).name])
            written += file.write(reads.astype("<i4").tobytes())
    for name, value in plan.constants.items():
        file.seek(plan.offsets[name])
        written += file.write(value.tobytes())
    assert written == plan.planned, (written, plan.planned)
