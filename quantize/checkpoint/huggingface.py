"""A Hugging Face directory of safetensors as a source: headers first, then one mapped tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from quantize.checkpoint.expected import check_config, check_specs
from quantize.checkpoint.floats import CHUNK, check_finite, to_f32
from quantize.checkpoint.safetensors_file import StoredTensor, read_header
from quantize.checkpoint.tokenizer_files import DOOR, MORE_TEMPLATES, TEMPLATES, check_files
from quantize.checkpoint.tokenizing import check_tokenizer
from quantize.errors import CheckpointError, shown
from quantize.foreign import TO_CONVERT, WHOLE_MODEL, foreign_folder
from quantize.model_config import CONFIG, EMBEDDING, HEAD, ModelConfig
from quantize.outside import Door
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
WHOLE, INDEX, INDEX_END = "model.safetensors", "model.safetensors.index.json", ".safetensors.index.json"
NAMED_WEIGHTS = "transformers_weights"  # config.json's key for weights under another name
LONGEST_NAME = 255  # bytes of a file name
FILE = Door(CheckpointError, "download it again")


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class HuggingFaceCheckpoint:
    """See ``Checkpoint``. Raises CheckpointError at once for a missing, malformed or unknown model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        where = str(path / "config.json")
        self.config = ModelConfig.from_hf(FILE.load(path / "config.json", dict[str, Any]), where)
        check_config(self.config, where)
        stored = _read_headers(path, self.config)
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
        found = {name: DOOR.read(self.path / name) for name in ASSETS if (self.path / name).is_file()}
        for name, data in found.items():
            if name.endswith(".json"):
                DOOR.json(data, self.path / name, dict[str, Any])
        more = {file.name.removesuffix(".jinja"): DOOR.text(DOOR.read(file), file) for file in self._more_templates()}
        if more:
            found[TEMPLATES] = json.dumps(more, ensure_ascii=False).encode()
        check_files(found, self.path)
        if TOKENIZER in found:
            check_tokenizer(found[TOKENIZER], str(self.path / TOKENIZER))
        return found

    def _more_templates(self) -> list[Path]:
        return sorted(file for file in (self.path / MORE_TEMPLATES).glob("*.jinja") if file.is_file())

    @cached_property
    def sha256(self) -> str:
        """Digest over names, sizes and bytes of the assets and the weights."""
        digest = hashlib.sha256()
        weights = {tensor.file for tensor in self._stored.values()}
        assets = {self.path / name for name in ASSETS if (self.path / name).is_file()}
        for path in sorted(weights | assets | set(self._more_templates())):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

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


def _read_headers(path: Path, config: ModelConfig) -> dict[str, StoredTensor]:
    """Of the files that transformers would load: those that config.json names, else one whole file, else an index's shards."""
    named = config.raw.get(NAMED_WEIGHTS)
    if named is not None:
        if not isinstance(named, str) or not named.endswith((".safetensors", INDEX_END)):
            raise CONFIG.refused(path / "config.json", f"{NAMED_WEIGHTS} is {shown(named)}, not the name of a safetensors file")
        _check_plain(named, path / "config.json")
        return _read_shards(path / named) if named.endswith(INDEX_END) else read_header(path / named)
    if (path / WHOLE).is_file():
        return read_header(path / WHOLE)
    if (path / INDEX).is_file():
        return _read_shards(path / INDEX)
    if any(path.glob("*.safetensors")):
        found = sorted(item.name for item in path.glob("*.safetensors"))
        raise CheckpointError(f"{path}: {found[0]} without {INDEX}; download the Hugging Face layout of this model whole")
    other = foreign_folder(path)
    if other is not None:
        raise CheckpointError(f"{path}: is {other.told}, and has no safetensors; {other.next(path, model=True)}")
    if any(path.glob("*.bin")) or any(path.glob("*.pt*")):
        raise CheckpointError(f"{path}: only pickled weights, which are never loaded; convert them: {TO_CONVERT.format(path)}")
    raise CheckpointError(f"{path}: the weights are missing: no {WHOLE} and no {INDEX}; {WHOLE_MODEL.format(folder=path)}")


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    weight_map = FILE.load(index, _Index).weight_map
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        _check_plain(file, index)
        shard = index.parent / file
        if not shard.exists():
            raise CheckpointError(f"{shard}: cannot be read: {index.name} names it, and it is not there; download it again")
        for name, tensor in read_header(shard).items():
            if name in tensors:
                raise CheckpointError(f"{index.parent}: {name} is in {tensors[name].file.name} and in {file}; download it again")
            tensors[name] = tensor
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(f"{index.parent / file}: {name} is not in it, though {index.name} says so; download it again")
    return tensors


def _check_plain(file: str, where: Path) -> None:
    if Path(file).name != file or file in ("", ".", "..") or "\0" in file or len(file.encode()) > LONGEST_NAME:
        raise CheckpointError(f"{where}: {shown(file)!r} is not a plain file name; get the model from its own source")
