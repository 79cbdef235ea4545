"""A QuantizedStore as a GGUF: all its files are planned from sizes, then poured one chunk of a tensor at a time."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType

from exporter.gguf.blocks import block_type, pack_blocks
from exporter.gguf.layout import TARGET_KEY, Part, Planned, lay_out
from exporter.gguf.metadata import build_metadata
from exporter.made_for import check_target
from exporter.targets import GGUF_TARGETS, TARGETS
from quantize.architecture.families import expected_shapes
from quantize.checkpoint.floats import to_f32
from quantize.checkpoint.gguf_source import ROPE_FREQS
from quantize.checkpoint.rope import llama3_factors
from quantize.errors import ExportError, OutputError, asked
from quantize.gguf.container import TensorInfo, Value, ValueType, map_file, padded, parse_header
from quantize.gguf.files import named_parts, part_paths
from quantize.gguf.names import WEIGHT_IC, to_gguf_name
from quantize.model_config import HEAD, ModelConfig, named
from quantize.progress import track
from quantize.store.output_group import check_files, new_files
from quantize.store.outputs import check_file, is_stream, new_file
from quantize.store.record import TensorRecord
from quantize.store.seal import OPEN, closed
from quantize.store.tensors import QuantizedStore
from quantize.types import F32, Axis, PlainTensor, QuantizedTensor

DATA_SEAL, HEADER_SEAL = "adadim.sha256.data", "adadim.sha256.header"  # see docs/reference/gguf-adadim.md
OPEN_SEALS = dict.fromkeys((DATA_SEAL, HEADER_SEAL), Value.encode(ValueType.STRING, OPEN))
MAX_NAME = 63  # bytes; ggml's GGML_MAX_NAME with its end


def write_gguf(
    store: QuantizedStore,
    out: Path,
    *,
    tokenizer_pre: str | None = None,
    split_size: int | None = None,
    force: bool = False,
) -> Path:
    """Write ``store`` to ``out`` and return it; the same store gives the same bytes.

    ``tokenizer_pre`` overrides the name of the pre-tokenizer. ``split_size``: bytes of a file at most; what does not fit into one
    becomes NAME-00001-of-00003.gguf and the others, all written or none, and the first is returned. Raises ExportError for a
    store that no GGUF holds, OutputError for an output that exists (without ``force``) or cannot be written.
    """
    check_target(store, GGUF_TARGETS)
    parts = _parts(store, tokenizer_pre, split_size)
    if len(parts) == 1:
        with new_file(out, force) as file:
            _pour(store, parts, [file])
        return out
    if is_stream(out) or out.is_dir():
        raise OutputError(f"{out}: cannot take {len(parts)} files; name a file, or drop {asked('split_size')}")
    paths = part_paths(out, len(parts))
    with new_files(paths, force, _foreign) as files:
        _pour(store, parts, files)
    return paths[0]


def check_gguf_output(path: Path, force: bool) -> None:
    """Raises OutputError for what ``write_gguf`` would not replace; ``path``: what it would return."""
    paths = named_parts(path)
    if len(paths) == 1:
        check_file(path, force)
    else:
        check_files(paths, force, _foreign)


def gguf_files(store: QuantizedStore, out: Path, tokenizer_pre: str | None = None, split_size: int | None = None) -> list[Path]:
    """What ``write_gguf`` would write, from the store's headers alone. Raises ExportError."""
    count = len(_parts(store, tokenizer_pre, split_size))
    return [out] if count == 1 else part_paths(out, count)


def gguf_size(store: QuantizedStore, tokenizer_pre: str | None = None, split_size: int | None = None) -> int:
    """Bytes of all that ``write_gguf`` would write, from the store's headers alone. Raises ExportError."""
    return sum(part.nbytes for part in _parts(store, tokenizer_pre, split_size))


def _parts(store: QuantizedStore, tokenizer_pre: str | None, split_size: int | None) -> list[Part]:
    metadata = build_metadata(store, tokenizer_pre) | OPEN_SEALS
    return lay_out(_forms(store), metadata, split_size, str(store.header["source"]["name"]))


def _foreign(path: Path) -> str | None:
    """Why a file is none that we have split off, or None."""
    try:
        ours = TARGET_KEY in parse_header(map_file(path)).metadata
    except (OSError, ValueError):
        ours = False
    return None if ours else "is none of our files"


def _forms(store: QuantizedStore) -> list[Planned]:
    """Every tensor of the file, not laid out yet."""
    config = store.config
    if not isinstance(config, ModelConfig):
        return [Planned(_stored_form(store, record), record) for record in store.records.values()]
    expected = expected_shapes(config).keys()
    strange = sorted(set(store.records) ^ expected - ({HEAD} if store.tied else set()))
    if strange:
        raise ExportError(f"{store.path}: {strange[0]} is in the store or in the model, but not in both; quantize again")
    forms = [Planned(_stored_form(store, record), record) for record in store.records.values()]
    if config.rope.kind != "llama3":
        return forms
    return [Planned(TensorInfo(ROPE_FREQS, GGMLQuantizationType.F32, (config.head_dim // 2,), 0), None), *forms]


def _stored_form(store: QuantizedStore, record: TensorRecord) -> TensorInfo:
    """Name, type and shape (outermost first) in the file."""
    name = to_gguf_name(record.name)
    if len(name.encode()) > MAX_NAME:
        raise ExportError(f"{store.path}: {name} is longer than GGUF's {MAX_NAME} bytes")
    if record.grid is None:
        return TensorInfo(name, GGMLQuantizationType[record.dtype if len(record.shape) > 1 else "F32"], record.shape, 0)
    kind = block_type(record.grid.name, f"{store.path}: {record.name}")
    if record.axis is Axis.PER_OC:
        return TensorInfo(name, kind, record.shape, 0)
    target, shape = TARGETS[store.target], (record.shape[0], record.shape[1])
    reason = target.lacks(record.grid, record.axis) or target.refuses(record.grid, record.axis, shape)
    if reason is not None:
        raise ExportError(f"{store.path}: {record.name}: {reason}")
    return TensorInfo(f"{name.rpartition('.')[0]}.{WEIGHT_IC}", kind, record.shape[::-1], 0)


def _pour(store: QuantizedStore, parts: Sequence[Part], files: Sequence[BinaryIO]) -> None:
    """Each part into its file; the seals, of all parts, into the first."""
    digest, pieces = hashlib.sha256(), list[tuple[Part, BinaryIO, Planned]]()
    for part, file in zip(parts, files, strict=True):
        file.write(part.header)
        pieces += [(part, file, item) for item in part.tensors]
    for part, file, item in track(pieces, "writing GGUF"):
        written = 0
        for data in _tensor_bytes(store, item.record):
            digest.update(data)
            written += file.write(data)
        assert written == item.info.nbytes, f"{item.info.name}: {written} bytes, planned {item.info.nbytes}"
        padding = bytes(padded(written, part.alignment) - written)
        digest.update(padding)
        file.write(padding)
    assert [file.tell() for file in files] == [part.nbytes for part in parts]
    first = replace(parts[0], metadata={**parts[0].metadata, DATA_SEAL: Value.encode(ValueType.STRING, digest.hexdigest())})
    headers = b"".join([first.header, *(part.header for part in parts[1:])])
    sealed = closed(headers, HEADER_SEAL.encode() + struct.pack("<IQ", ValueType.STRING, len(OPEN)))
    files[0].seek(0)
    files[0].write(sealed[: len(first.header)])


def _tensor_bytes(store: QuantizedStore, record: TensorRecord | None) -> Iterator[bytes]:
    if record is None:
        config = named(store.config, store.path)
        yield llama3_factors(asdict(config.rope), config.head_dim, config.rope.theta).tobytes()
        return
    for chunk in store.chunks(record.name):
        if isinstance(chunk, QuantizedTensor):
            yield pack_blocks(chunk).tobytes()
        else:
            yield (chunk.values if chunk.values.ndim > 1 else _f32(chunk)).tobytes()


def _f32(tensor: PlainTensor) -> F32:
    return np.ascontiguousarray(to_f32(tensor.values, tensor.dtype))
