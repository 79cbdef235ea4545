"""Write a store as a folder for onnxruntime and onnxruntime-genai: plan the whole file, then pour one chunk at a time.

::

    DIR/model.onnx           graph, small constants, metadata; external data below
    DIR/model.onnx.data      codes, scales, zero points, norms, rotary tables; with a split size more in .data.1, .data.2 ...
    DIR/genai_config.json    and the tokenizer's files
    DIR/libadadim_ort.so     if add_library put it there
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Unpack

from exporter.made_for import check_target
from exporter.onnx.float16 import check_float16
from exporter.onnx.genai import write_genai_files
from exporter.onnx.genai_tokenizer import TOKENIZER_FILES
from exporter.onnx.graph import exported_context
from exporter.onnx.library import LIBRARY
from exporter.onnx.plan import DATA_SEAL, FILES_SEAL, GRAPH_SEAL, PRODUCER, OnnxAsked, OnnxOptions, OnnxPlan, plan_onnx
from exporter.onnx.preflight import check_onnx
from exporter.onnx.sums import reads_of
from exporter.onnx.turns import turn_spans
from exporter.targets import ONNX_TARGETS
from quantize.block_turn import BlockTurn
from quantize.errors import FileFormatError
from quantize.onnx.reader import MODEL_FILE, parse_model
from quantize.onnx.template import data_files
from quantize.outside import sha256_of
from quantize.progress import track
from quantize.store.outputs import Unfinished, check_folder
from quantize.store.seal import OPEN, closed
from quantize.store.tensors import QuantizedStore
from quantize.template.onnx_genai import GENAI_FILE
from quantize.types import PlainTensor

VALUE_OF_SEAL = bytes((2 << 3 | 2, len(OPEN)))  # protobuf: field 2 of a metadata entry, of so many bytes
FILES = (MODEL_FILE, GENAI_FILE, LIBRARY, *TOKENIZER_FILES)


def write_onnx(store: QuantizedStore, out_dir: Path, *, force: bool = False, **options: Unpack[OnnxAsked]) -> Path:
    """Write the folder ``out_dir`` (through a sibling that takes its name at the end) and return it.

    ``options``: fields of OnnxOptions. Raises OutputError if ``out_dir`` exists and not ``force``, is neither empty nor an
    export without other files, or cannot be written; ExportError for what ONNX cannot hold.
    """
    check_target(store, ONNX_TARGETS)
    check_onnx_output(out_dir, force)
    check_onnx(store.config, store.asset_names(), str(store.path))
    if options.get("onnx_dtype") == "float16":
        check_float16(store)
    with Unfinished(out_dir, True, force, _foreign) as unfinished:
        _write_folder(store, unfinished.path, OnnxOptions(**options))
        unfinished.finish()
    return out_dir


def onnx_size(store: QuantizedStore, **options: Unpack[OnnxAsked]) -> int:
    """Bytes of the model files that ``write_onnx`` would write, from the store's headers alone. Raises ExportError."""
    return plan_onnx(store, OnnxOptions(**options)).nbytes


def check_onnx_output(out_dir: Path, force: bool) -> None:
    """Raises OutputError for what ``write_onnx`` would not replace."""
    check_folder(out_dir, force, _foreign)


def _foreign(folder: Path) -> str | None:
    """Why a folder was not written here, or holds what was not."""
    try:
        model = parse_model(folder / MODEL_FILE)
    except FileFormatError:
        return f"has no {MODEL_FILE} of an earlier export"
    if model.producer_name != PRODUCER:
        return f"{MODEL_FILE} in it was not written by {PRODUCER}"
    names = sorted(item.name for item in folder.iterdir())
    known = {*FILES, *data_files(model)}
    return next((f"{name} in it is no part of an export" for name in names if name not in known), None)


def _write_folder(store: QuantizedStore, directory: Path, options: OnnxOptions) -> None:
    plan = plan_onnx(store, options)
    with ExitStack() as opened:
        _pour(plan, store, {name: opened.enter_context((directory / name).open("wb")) for name in plan.layout.sizes})
    write_genai_files(store, directory, exported_context(store.config, options.context))
    data = sha256_of(*(directory / name for name in plan.layout.sizes))
    digests = {DATA_SEAL: data, FILES_SEAL: _digest_of_files(directory)}
    for entry in plan.model.metadata_props:
        entry.value = digests.get(entry.key, entry.value)
    model = plan.model.SerializeToString(deterministic=True)
    (directory / MODEL_FILE).write_bytes(closed(model, GRAPH_SEAL.encode() + VALUE_OF_SEAL))


def _digest_of_files(directory: Path) -> str:
    """Of the tokenizer's files that are there: name and digest of each, as sha256sum writes them."""
    lines = [f"{sha256_of(directory / name)}  {name}\n" for name in TOKENIZER_FILES if (directory / name).is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _pour(plan: OnnxPlan, store: QuantizedStore, files: Mapping[str, BinaryIO]) -> None:
    """Every initializer's bytes at its place; gaps are zeros."""
    written = 0

    def put(initializer: str, offset: int, data: bytes) -> None:
        nonlocal written
        place = plan.layout.places[initializer]
        files[place.location].seek(place.offset + offset)
        written += files[place.location].write(data)

    for name, size in plan.layout.sizes.items():
        files[name].truncate(size)
    for name, forms in track(plan.forms.items(), "writing ONNX", len(plan.forms)):
        row = 0
        for chunk in store.chunks(name):
            for piece in (piece for form in forms for piece in form.pour(row, chunk)):
                put(*piece)
            row += len(chunk.values if isinstance(chunk, PlainTensor) else chunk.codes)
        store.check_reads(name)
        reads = store.reads(name)
        if reads is not None:
            put(reads_of(store.records[name]).name, 0, reads.astype("<i4").tobytes())
        if plan.turns_before(name):
            turn = store.turn(name)
            assert isinstance(turn, BlockTurn), name
            for span in turn_spans(name, turn):
                put(*span)
    for name, value in plan.constants.items():
        put(name, 0, value.tobytes())
    assert written == plan.planned, (written, plan.planned)
