"""What a GGUF or an ONNX folder says of itself: all that a bundle's manifest and its model card may claim."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.genai_tokenizer import TOKENIZER_FILES
from exporter.inspect import Report, inspect
from exporter.onnx_genai import GENAI_FILE
from exporter.targets import GGUF_TARGETS
from quantize.checkpoint.gguf_container import GgufHeader, parse_header
from quantize.checkpoint.gguf_names import to_hf_name_or_own
from quantize.errors import ConfigError, ExportError, FileFormatError
from quantize.kinds import Wanted, is_store, mistaken

FOLDER = "model"  # of the bundle, where all that the runtime reads lies
TENSOR_KEYS = ("name", "shape", "grid", "bits", "group_size", "axis", "bytes")
KV_BYTES = {"llama.cpp": 2, "onnxruntime": 4}  # an entry of the cache: float16 by llama.cpp's default, float32 in our graphs


@dataclass(frozen=True)
class Facts:
    """``files``: path in the bundle -> where it lies, or its bytes. ``model``: the path of the one that the runtime opens.

    ``context``: the most tokens that the model can hold; ``kv_entries``: numbers that the cache holds for each of them.
    """

    name: str
    runtime: str
    target: str | None
    files: Mapping[str, Path | bytes]
    model: str
    context: int
    kv_entries: int
    special: Mapping[str, Any]
    tensors: Sequence[Report]
    totals: Report
    source: Mapping[str, Any]
    provenance: Mapping[str, Any]
    licence: str | None

    @property
    def kv_bytes(self) -> int:
        """Bytes of cache for each token."""
        return self.kv_entries * KV_BYTES[self.runtime]


def read_facts(path: Path) -> Facts:
    """Raises FileFormatError for what is neither, ExportError for a file that no phone's runtime reads."""
    if is_store(path):
        raise ExportError(mistaken(path, Wanted.FILE))
    report = inspect(path)
    try:
        return _onnx_facts(path, report) if path.is_dir() else _gguf_facts(path, report)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path}: lacks what a model is bundled by ({error!r}); export it again") from error


def _tensors(report: Report) -> list[Report]:
    return [{key: item[key] for key in TENSOR_KEYS} for item in report["tensors"]]


def _gguf_facts(path: Path, report: Report) -> Facts:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        header = parse_header(view)
    _check_gguf(path, header)
    values = {key: value.decode() for key, value in header.metadata.items() if not key.startswith("tokenizer.ggml.tokens")}
    ours = {key.removeprefix("adadim."): value for key, value in values.items() if key.startswith("adadim.")}
    arch = f"{values['general.architecture']}."
    heads = values[arch + "attention.head_count"]
    kv_heads = values.get(arch + "attention.head_count_kv", heads)
    width = values.get(arch + "attention.key_length", values[arch + "embedding_length"] // heads)
    ends = (values.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom"))
    return Facts(
        name=str(values.get("general.name", path.stem)),
        runtime="llama.cpp",
        target=ours.get("target"),
        files={f"{FOLDER}/model.gguf": path},
        model=f"{FOLDER}/model.gguf",
        context=values[arch + "context_length"],
        kv_entries=2 * values[arch + "block_count"] * kv_heads * width,
        special={
            "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
            "eos_token_ids": sorted({end for end in ends if end is not None}),
        },
        tensors=_tensors(report),
        totals=report["totals"],
        source={"name": ours.get("source.name"), "sha256": ours.get("source.sha256")},
        provenance=_provenance(ours, {key: ours.get(f"calibration.{key}") for key in ("name", "sha256", "tokens")}),
        licence=values.get("general.license"),
    )


def _check_gguf(path: Path, header: GgufHeader) -> None:
    """Raises ExportError."""
    target = header.metadata.get("adadim.target")
    if any(name.endswith(".weight_ic") for name in header.tensors):
        known = ", ".join(name for name in GGUF_TARGETS if name != "gguf-adadim")
        raise ExportError(f"{path}: holds tensors that no runtime reads ({target and target.decode()}); quantize for {known}")
    if "split.count" in header.metadata and header.metadata["split.count"].decode() > 1:
        raise ExportError(f"{path}: one of several files; join them with llama-gguf-split --merge")
    if "tokenizer.ggml.model" not in header.metadata:
        raise ExportError(f"{path}: holds no tokenizer; export it from a model that has one")


def _onnx_facts(path: Path, report: Report) -> Facts:
    """Raises ExportError for a folder of another tool, whose graph no manifest can describe."""
    if "target" not in report:
        raise ExportError(f"{path}: not written by adadim; make one to bundle: adadim run MODEL --target onnxruntime --out OUT")
    import onnx

    model = onnx.load(path / "model.onnx", load_external_data=False)
    ours = {entry.key.removeprefix("adadim."): entry.value for entry in model.metadata_props}
    config, calibration, source = (json.loads(ours.get(key, "{}")) or {} for key in ("config", "calibration", "source"))
    genai = json.loads((path / GENAI_FILE).read_text(encoding="utf-8"))
    decoder, eos = genai["model"]["decoder"], genai["model"].get("eos_token_id", [])
    locations = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
    names = ["model.onnx", *sorted(locations), *(name for name in TOKENIZER_FILES if (path / name).is_file())]
    if strange := [name for name in names if Path(name).name != name]:
        raise ExportError(f"{path}: model.onnx reads {strange[0]!r}, which is not beside it; export it again")
    return Facts(
        name=str(source.get("name", path.name)),
        runtime="onnxruntime",
        target=ours["target"],
        files={f"{FOLDER}/{name}": path / name for name in names} | {f"{FOLDER}/{GENAI_FILE}": json.dumps(genai).encode()},
        model=f"{FOLDER}/model.onnx",
        context=genai["model"]["context_length"],
        kv_entries=2 * decoder["num_hidden_layers"] * decoder["num_key_value_heads"] * decoder["head_size"],
        special={
            "bos_token_id": genai["model"].get("bos_token_id"),
            "eos_token_ids": sorted(eos) if isinstance(eos, list) else [eos],
        },
        tensors=_tensors(report),
        totals=report["totals"],
        source={"name": source.get("name"), "sha256": source.get("sha256")},
        provenance=_provenance(
            {**config, **ours, "imatrix.name": config.get("imatrix"), "tune_steps": int(ours.get("tune_steps", 0))},
            {"name": calibration.get("text"), "sha256": calibration.get("sha256"), "tokens": calibration.get("tokens")},
        ),
        licence=None,
    )


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
    from quantize.store import QuantizedStore

    held = QuantizedStore(store)
    if held.header["source"].get("sha256") != facts.source["sha256"] or held.target != facts.target:
        raise ConfigError(f"--store {store}: is not what this file was written from; drop it or give the right one")
    records, tensors = held.records, list[Report]()
    for item in facts.tensors:
        record = records.get(to_hf_name_or_own(item["name"].replace(".weight_ic", ".weight")))
        if record is None or record.grid is None or item["axis"] is None:
            tensors.append(item)
            continue
        if (record.grid.bits, str(record.axis)) != (item["bits"], item["axis"]):
            raise ConfigError(f"--store {store}: {record.name} is not stored so in the file; give the store it was written from")
        tensors.append({**item, "loss": dict(record.loss)})
    return tensors
