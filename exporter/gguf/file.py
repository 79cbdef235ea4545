"""A QuantizedStore as a GGUF file: the whole file is planned from sizes, then poured one chunk of a tensor at a time."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType

from exporter.gguf.blocks import block_type, pack_blocks
from exporter.gguf.metadata import build_metadata
from exporter.targets import GGUF_TARGETS, TARGETS, check_target
from quantize.architecture.families import expected_shapes
from quantize.checkpoint.floats import to_f32
from quantize.checkpoint.gguf_source import ROPE_FREQS
from quantize.checkpoint.rope import llama3_factors
from quantize.errors import ExportError
from quantize.gguf.container import TensorInfo, Value, ValueType, alignment_of, encode_header, padded
from quantize.gguf.names import WEIGHT_IC, to_gguf_name
from quantize.model_config import HEAD, ModelConfig, named
from quantize.progress import track
from quantize.store.outputs import new_file
from quantize.store.seal import OPEN, closed
from quantize.store.tensors import QuantizedStore, TensorRecord
from quantize.types import F32, Axis, PlainTensor, QuantizedTensor

DATA_SEAL, HEADER_SEAL = "adadim.sha256.data", "adadim.sha256.header"  # see docs/reference/gguf-adadim.md
OPEN_SEALS = dict.fromkeys((DATA_SEAL, HEADER_SEAL), Value.encode(ValueType.STRING, OPEN))
MAX_NAME = 63  # bytes; ggml's GGML_MAX_NAME with its end


def write_gguf(store: QuantizedStore, out: Path, *, tokenizer_pre: str | None = None, force: bool = False) -> Path:
    """Write ``store`` to ``out`` and return it; the same store gives the same bytes.

    ``tokenizer_pre`` overrides the name of the pre-tokenizer. Raises ExportError for a store that no GGUF holds,
    OutputError for an output that exists (without ``force``) or cannot be written.
    """
    check_target(store, GGUF_TARGETS)
    forms = _forms(store)
    metadata = build_metadata(store, tokenizer_pre) | OPEN_SEALS
    plan = _lay_out(forms, alignment_of(metadata))
    with new_file(out, force) as file:
        _pour(store, plan, metadata, file)
    return out


def gguf_size(store: QuantizedStore, tokenizer_pre: str | None = None) -> int:
    """Bytes of the file that ``write_gguf`` would write, from the store's headers alone. Raises ExportError."""
    metadata = build_metadata(store, tokenizer_pre) | OPEN_SEALS
    plan = _lay_out(_forms(store), alignment_of(metadata))
    header = encode_header(metadata, [item.info for item in plan])
    return len(header) + sum(padded(item.info.nbytes, alignment_of(metadata)) for item in plan)


@dataclass(frozen=True)
class _Planned:
    """One tensor of the file; ``record`` None for rope_freqs.weight, which is computed."""

    info: TensorInfo
    record: TensorRecord | None


def _forms(store: QuantizedStore) -> list[_Planned]:
    """Every tensor of the file, not laid out yet."""
    config = store.config
    if not isinstance(config, ModelConfig):
        return [_Planned(_stored_form(store, record), record) for record in store.records.values()]
    expected = expected_shapes(config).keys()
    strange = sorted(set(store.records) ^ expected - ({HEAD} if store.tied else set()))
    if strange:
        raise ExportError(f"{store.path}: {strange[0]} is in the store or in the model, but not in both; quantize again")
    forms = [_Planned(_stored_form(store, record), record) for record in store.records.values()]
    if config.rope.kind != "llama3":
        return forms
    return [_Planned(TensorInfo(ROPE_FREQS, GGMLQuantizationType.F32, (config.head_dim // 2,), 0), None), *forms]


def _lay_out(forms: list[_Planned], alignment: int) -> list[_Planned]:
    """The same tensors one after another, each padded to the alignment."""
    offset, plan = 0, []
    for form in forms:
        plan.append(replace(form, info=replace(form.info, offset=offset)))
        offset += padded(form.info.nbytes, alignment)
    return plan


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


def _pour(store: QuantizedStore, plan: list[_Planned], metadata: Mapping[str, Value], file: BinaryIO) -> None:
    alignment = alignment_of(metadata)
    infos, digest = [item.info for item in plan], hashlib.sha256()
    start = file.write(encode_header(metadata, infos))
    for item in track(plan, "writing GGUF"):
        written = 0
        for data in _tensor_bytes(store, item.record):
            digest.update(data)
            written += file.write(data)
        assert written == item.info.nbytes, f"{item.info.name}: {written} bytes, planned {item.info.nbytes}"
        padding = bytes(padded(written, alignment) - written)
        digest.update(padding)
        file.write(padding)
    assert file.tell() == start + sum(padded(item.info.nbytes, alignment) for item in plan)
    sealed = {**metadata, DATA_SEAL: Value.encode(ValueType.STRING, digest.hexdigest())}
    file.seek(0)
    file.write(closed(encode_header(sealed, infos), HEADER_SEAL.encode() + struct.pack("<IQ", ValueType.STRING, len(OPEN))))


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
