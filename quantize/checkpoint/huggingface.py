"""A Hugging Face directory of safetensors as a source: headers first, then one mapped tensor at a time."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.expected import check_config, check_specs
from quantize.checkpoint.floats import CHUNK, check_finite, to_f32
from quantize.checkpoint.shards import FILE, files_digest, stored_tensors
from quantize.checkpoint.tokenizer_files import DOOR, MORE_TEMPLATES, TEMPLATES, check_files
from quantize.checkpoint.tokenizing import check_tokenizer
from quantize.errors import CheckpointError, shown
from quantize.foreign import quantized_by
from quantize.model_config import EMBEDDING, HEAD, MODEL_TYPES, ModelConfig
from quantize.types import F32, PlainTensor, TensorSpec

ASSETS = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
TOKENIZER = "tokenizer.json"


def is_family(raw: Mapping[str, Any]) -> bool:
    """Whether config.json is of a decoder that is known by name, or of nothing that one could tell."""
    return not isinstance(raw.get("model_type"), str) or raw["model_type"] in MODEL_TYPES


def is_quantized(folder: Path) -> bool:
    """Whether its config.json says so."""
    return quantized_by(FILE.load(folder / "config.json", dict[str, Any])) is not None


class HuggingFaceCheckpoint:
    """See ``Checkpoint``. Raises CheckpointError at once for a missing, malformed or unknown model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        where = str(path / "config.json")
        raw = FILE.load(path / "config.json", dict[str, Any])
        if not is_family(raw):
            raise CheckpointError(
                f"{where}: model_type {shown(raw['model_type'])!r} is no family that is known by name here; make a GGUF of it, "
                f"which is a source: adadim convert {shlex.quote(str(path))} --out MODEL.gguf"
            )
        self.config = ModelConfig.from_hf(raw, where)
        check_config(self.config, where)
        stored = stored_tensors(path, self.config.raw)
        self.specs: Mapping[str, TensorSpec] = check_specs({n: t.spec for n, t in stored.items()}, self.config, str(path))
        self._stored = stored
        self.tied = HEAD not in stored or self._same(HEAD, EMBEDDING)
        if self.tied:
            self.specs = {name: spec for name, spec in self.specs.items() if name != HEAD}

    def read(self, name: str) -> F32:
        """The tensor as F32; a read-only map where the file holds F32."""
        values = self.raw(name)
        return to_f32(values.values, values.dtype)

    def read_rows(self, name: str, start: int, stop: int) -> F32:
        """Rows [start, stop) as F32."""
        stored = self._stored[name]
        rows = stored.map()[start:stop]
        check_finite(rows, stored.spec.dtype, name, str(stored.file))
        return to_f32(rows, stored.spec.dtype)

    def raw(self, name: str) -> PlainTensor:
        """The tensor as a read-only map in the file's own dtype."""
        stored = self._stored[name]
        values = stored.map()
        check_finite(values, stored.spec.dtype, name, str(stored.file))
        return PlainTensor(name, values, stored.spec.dtype)

    def assets(self) -> dict[str, bytes]:
        """The small files that are there. Raises CheckpointError for one that is damaged."""
        return dict(self._assets)

    @cached_property
    def _assets(self) -> dict[str, bytes]:
        return read_assets(self.path)

    @cached_property
    def sha256(self) -> str:
        """Digest over names, sizes and bytes of the assets and the weights."""
        weights = {tensor.file for tensor in self._stored.values()}
        assets = {self.path / name for name in ASSETS if (self.path / name).is_file()}
        return files_digest(weights | assets | set(_more_templates(self.path)))

    def _same(self, left: str, right: str) -> bool:
        """Whether two matrices hold the same values, compared a few rows at a time."""
        one, two = self._stored[left], self._stored[right]
        rows, columns = one.spec.shape
        step = max(1, CHUNK // columns)
        a, b = one.map(), two.map()
        return all(
            np.array_equal(to_f32(a[i : i + step], one.spec.dtype), to_f32(b[i : i + step], two.spec.dtype))
            for i in range(0, rows, step)
        )


def read_assets(folder: Path) -> dict[str, bytes]:
    """Its small files by name, other chat templates as one. Raises CheckpointError for one that is damaged."""
    found = {name: DOOR.read(folder / name) for name in ASSETS if (folder / name).is_file()}
    for name, data in found.items():
        if name.endswith(".json"):
            DOOR.json(data, folder / name, dict[str, Any])
    more = {file.name.removesuffix(".jinja"): DOOR.text(DOOR.read(file), file) for file in _more_templates(folder)}
    if more:
        found[TEMPLATES] = json.dumps(more, ensure_ascii=False).encode()
    check_files(found, folder)
    if TOKENIZER in found:
        check_tokenizer(found[TOKENIZER], str(folder / TOKENIZER))
    return found


def _more_templates(folder: Path) -> list[Path]:
    return sorted(file for file in (folder / MORE_TEMPLATES).glob("*.jinja") if file.is_file())
