"""What a GGUF or an ONNX folder says of itself: all that a bundle's manifest and its model card may claim."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exporter.inspect import Report, inspect, read_gguf_files
from exporter.onnx.genai_reader import DecoderJson, read_genai
from exporter.onnx.genai_tokenizer import TOKENIZER_FILES
from exporter.targets import GGUF_TARGETS
from exporter.writers import writer_at
from quantize.checkpoint.gguf_source import check_gguf_model
from quantize.checkpoint.gguf_values import NO_TOKEN, TOKENIZER, GgufValues
from quantize.errors import CheckpointError, ConfigError, ExportError, FileFormatError, asked, shown
from quantize.gguf.files import GgufFiles
from quantize.gguf.names import to_source_name
from quantize.kinds import Wanted, is_store, mistaken, readable
from quantize.outside import Count, Door
from quantize.store.schema import Sha256, Word
from quantize.template.onnx_genai import GENAI_FILE

if TYPE_CHECKING:
    from quantize.onnx.reader import OnnxGraph

FOLDER = "model"  # of the bundle, where all that the runtime reads lies
TENSOR_KEYS = ("name", "shape", "grid", "bits", "group_size", "axis", "bytes")


DOOR = Door(FileFormatError, "export it again")
Seed = int  # of 64 bits without a sign, which is more than msgspec can bound


class _Source(msgspec.Struct):
    name: Word | None = None
    sha256: Sha256 | None = None


class _Config(msgspec.Struct):
    method: Word | None = None
    seed: Seed | None = None
    imatrix: Word | None = None


class _Calibration(msgspec.Struct):
    text: Word | None = None
    sha256: Sha256 | None = None
    tokens: Count | None = None


class _GgufMade(msgspec.Struct, rename=lambda name: name.replace("_", ".") if "_" in name and name != "tune_steps" else name):
    """How a GGUF was made, as far as it is told again."""

    version: Word | None = None
    target: Word | None = None
    method: Word | None = None
    seed: Seed | None = None
    tune_steps: Count | None = None
    source_name: Word | None = None
    source_sha256: Sha256 | None = None
    calibration_name: Word | None = None
    calibration_sha256: Sha256 | None = None
    calibration_tokens: Count | None = None
    imatrix_name: Word | None = None


class _OnnxMade(msgspec.Struct):
    """How a folder was made."""

    version: Word | None = None
    tune_steps: Count = 0
    source: _Source | None = None
    config: _Config | None = None
    calibration: _Calibration | None = None


@dataclass(frozen=True)
class Facts:
    """``files``: path in the bundle -> where it lies, or its bytes. ``model``: the path of the one that the runtime opens.

    ``context``: the most tokens that the model can hold; ``kv_bytes`` of cache for each of them. ``halved``: whether its graph
    takes and gives float16.
    """

    name: str
    runtime: str
    target: str | None
    files: Mapping[str, Path | bytes]
    model: str
    context: int
    kv_bytes: int
    special: Mapping[str, Any]
    tensors: Sequence[Report]
    totals: Report
    source: Mapping[str, Any]
    provenance: Mapping[str, Any]
    licence: str | None
    halved: bool = False


def read_facts(path: Path) -> Facts:
    """Raises FileFormatError for what is neither, ExportError for a file that no phone's runtime reads."""
    if is_store(path):
        raise ExportError(mistaken(path, Wanted.FILE))
    report = inspect(path)
    if writer_at(path) == "onnx":
        return _onnx_facts(path, report)
    try:
        return _gguf_facts(path, report)
    except CheckpointError as error:
        raise FileFormatError(str(error)) from error
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path}: lacks what a model is bundled by ({error!r}); export it again") from error


def _tensors(report: Report) -> list[Report]:
    return [{key: item[key] for key in TENSOR_KEYS} for item in report["tensors"]]


def _gguf_facts(path: Path, report: Report) -> Facts:
    files = read_gguf_files(path)
    values = GgufValues(files.metadata, str(path))
    _check_gguf(files, values)
    ours = {key.removeprefix("adadim."): values[key] for key in values if key.startswith("adadim.")}
    DOOR.convert(ours, f"{path}: adadim.* in its metadata", _GgufMade)
    arch = f"{values['general.architecture']}."
    ids = {kind: values.get(f"{TOKENIZER}{kind}_token_id", NO_TOKEN) for kind in ("bos", "eos", "eot", "eom")}
    return Facts(
        name=str(values.get("general.name", readable(path.stem))),
        runtime="llama.cpp",
        target=ours.get("target"),
        files={f"{FOLDER}/model.gguf": path},
        model=f"{FOLDER}/model.gguf",
        context=values.size(arch + "context_length"),
        kv_bytes=2 * 2 * _kv_channels(values, arch),  # keys and values, in float16 by llama.cpp's default
        special={
            "bos_token_id": None if ids["bos"] == NO_TOKEN else ids["bos"],
            "eos_token_ids": sorted({ids[kind] for kind in ("eos", "eot", "eom")} - {NO_TOKEN}),
        },
        tensors=_tensors(report),
        totals=report["totals"],
        source={"name": ours.get("source.name"), "sha256": ours.get("source.sha256")},
        provenance=_provenance(ours, {key: ours.get(f"calibration.{key}") for key in ("name", "sha256", "tokens")}),
        licence=values.get("general.license"),
    )


def _kv_channels(values: GgufValues, arch: str) -> int:
    """Channels of the keys of all layers together; those of the values are as many."""
    layers, heads = values.size(arch + "block_count"), values.per_layer(arch + "attention.head_count")
    kv_heads = values.per_layer(arch + "attention.head_count_kv") or heads
    width = values.size(arch + "attention.key_length", values.size(arch + "embedding_length") // max(heads))
    return width * (sum(kv_heads) if len(kv_heads) > 1 else layers * kv_heads[0])


def _check_gguf(files: GgufFiles, values: GgufValues) -> None:
    """Raises ExportError."""
    path, target = files.paths[0], files.metadata.get("adadim.target")
    if any(name.endswith(".weight_ic") for name in files.tensors):
        known = ", ".join(name for name in GGUF_TARGETS if name != "gguf-adadim")
        raise ExportError(f"{path}: holds tensors that no runtime reads ({target and target.decode()}); quantize for {known}")
    if len(files.paths) > 1:
        raise ExportError(
            f"{path}: one of several files; join them with llama-gguf-split --merge, or export without {asked('split_size')}"
        )
    if f"{TOKENIZER}model" not in values or f"{TOKENIZER}tokens" not in values:
        raise ExportError(f"{path}: holds no tokenizer; export it from a model that has one")
    check_gguf_model(files.tensors, values, str(path))


def _onnx_facts(path: Path, report: Report) -> Facts:
    """Raises FileFormatError, and ExportError for a folder of another tool, whose graph no manifest can describe."""
    if "target" not in report:
        raise ExportError(f"{path}: not written by adadim; make one to bundle: adadim run MODEL --target onnxruntime --out OUT")
    from quantize.onnx.reader import MODEL_FILE, read_graph

    graph = read_graph(path)
    made = _read_made(path / MODEL_FILE, graph.metadata)
    genai, raw = read_genai(path)
    decoder = genai.model.decoder
    names = _onnx_names(path, graph, decoder)
    caches, halved = _caches(graph)
    source, config, calibration = (made.source or _Source(), made.config or _Config(), made.calibration or _Calibration())
    return Facts(
        name=source.name or readable(path.name),
        runtime="onnxruntime",
        target=report["target"],
        files={f"{FOLDER}/{name}": path / name for name in names} | {f"{FOLDER}/{GENAI_FILE}": json.dumps(raw).encode()},
        model=f"{FOLDER}/{MODEL_FILE}",
        context=genai.model.context_length,
        kv_bytes=caches * decoder.num_key_value_heads * decoder.head_size * (2 if halved else 4),
        special={"bos_token_id": genai.model.bos_token_id, "eos_token_ids": genai.model.eos_token_ids},
        tensors=_tensors(report),
        totals=report["totals"],
        source={"name": source.name, "sha256": source.sha256},
        provenance=_provenance(
            {
                "version": made.version,
                "method": config.method,
                "seed": config.seed,
                "tune_steps": made.tune_steps,
                "imatrix.name": config.imatrix,
            },
            {"name": calibration.text, "sha256": calibration.sha256, "tokens": calibration.tokens},
        ),
        licence=None,
        halved=halved,
    )


def _caches(graph: OnnxGraph) -> tuple[int, bool]:
    """How many keys and values it takes, of which a state of fixed size is none, and whether they are float16."""
    from onnx import TensorProto

    kinds = [value.type.tensor_type.elem_type for value in graph.model.graph.input if value.name.startswith("past_key_values.")]
    return len(kinds), TensorProto.FLOAT16 in kinds


def _onnx_names(path: Path, graph: OnnxGraph, decoder: DecoderJson) -> list[str]:
    """Files that the runtime reads beside genai_config.json. Raises FileFormatError and ExportError."""
    from quantize.onnx.data import inside
    from quantize.onnx.reader import MODEL_FILE

    states = [value.name.split(".") for value in graph.model.graph.input if value.name.startswith("past")]
    layers = len({name[1] for name in states if len(name) > 1})
    if (decoder.filename, decoder.num_hidden_layers) != (MODEL_FILE, layers):
        told = f"names '{shown(decoder.filename)}' and {decoder.num_hidden_layers} layers, {MODEL_FILE} has {layers}"
        raise FileFormatError(f"{path / GENAI_FILE}: {told}; export it again")
    names = [MODEL_FILE, *sorted(graph.locations), *(name for name in TOKENIZER_FILES if (path / name).exists())]
    if strange := [name for name in names if Path(name).name != name]:
        raise ExportError(f"{path}: model.onnx reads '{shown(strange[0])}', which is not beside it; export it again")
    for name in (*names, GENAI_FILE):
        try:
            inside(path, name)
        except OSError as error:
            raise FileFormatError(f"{path}: {error}") from error
    return names


def _read_made(where: Path, metadata: Mapping[str, str]) -> _OnnxMade:
    """``adadim.*`` in a graph's metadata: texts, of which these are JSON. Raises FileFormatError."""
    keys = ("config", "calibration", "source", "tune_steps")
    texts = {key: metadata[f"adadim.{key}"] for key in keys if f"adadim.{key}" in metadata}
    raw = {key: DOOR.json(text.encode(), f"{where}: adadim.{key} in its metadata", object) for key, text in texts.items()}
    version = {"version": metadata["adadim.version"]} if "adadim.version" in metadata else {}
    return DOOR.convert(raw | version, f"{where}: adadim.* in its metadata", _OnnxMade)


def _provenance(ours: Mapping[str, Any], calibration: Mapping[str, Any]) -> dict[str, Any]:
    """How the model was made, as far as its file says."""
    return {
        "adadim_edge": ours.get("version"),
        "method": ours.get("method"),
        "seed": ours.get("seed"),
        "tune_steps": ours.get("tune_steps"),
        "calibration": calibration if any(value is not None for value in calibration.values()) else None,
        "imatrix": ours.get("imatrix.name"),
    }


def with_losses(facts: Facts, store: Path) -> list[Report]:
    """The tensors with the loss of each axis that was tried, from the store that the file was written of.

    Raises StoreError, and ConfigError for another model's store.
    """
    from quantize.store.tensors import QuantizedStore

    held = QuantizedStore(store)
    if held.header["source"]["sha256"] != facts.source["sha256"] or held.target != facts.target:
        raise ConfigError(f"{asked('store', str(store))}: is not what this file was written from; drop it or give the right one")
    records, tensors = held.records, list[Report]()
    for item in facts.tensors:
        record = records.get(to_source_name(item["name"].replace(".weight_ic", ".weight")))
        if record is None or record.grid is None or item["axis"] is None:
            tensors.append(item)
            continue
        if (record.grid.bits, str(record.axis)) != (item["bits"], item["axis"]):
            raise ConfigError(
                f"{asked('store', str(store))}: {record.name} is not stored so in the file; give the store it was written from"
            )
        tensors.append({**item, "loss": dict(record.loss)})
    return tensors
