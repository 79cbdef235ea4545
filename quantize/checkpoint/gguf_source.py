"""A GGUF file of any type that gguf-py can dequantize as a source, under Hugging Face names and row order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gguf import dequantize

from quantize.checkpoint.expected import check_config, check_specs
from quantize.checkpoint.floats import CHUNK, FLOATS, check_finite, to_f32
from quantize.checkpoint.gguf_config import config_from_gguf
from quantize.checkpoint.gguf_container import GgufHeader, TensorInfo, encode_header, parse_header
from quantize.checkpoint.gguf_names import WEIGHT_IC, to_hf_name
from quantize.checkpoint.gguf_tokenizer import tokenizer_assets
from quantize.checkpoint.row_order import hf_row_index
from quantize.errors import CheckpointError
from quantize.model_config import EMBEDDING, HEAD, ModelConfig
from quantize.types import F32, U8, Array, PlainTensor, TensorSpec

ROPE_FREQS = "rope_freqs.weight"
METADATA_ASSET = "metadata.gguf"


class GgufCheckpoint:
    """See ``Checkpoint``. Raises CheckpointError at once for a malformed file or an unknown architecture."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = np.memmap(path, np.uint8, "r")
        self._header = _parse(self._data, path)
        values = self._metadata = _decode_all(self._header, path)
        if int(values.get("split.count", 1)) > 1:
            raise CheckpointError(f"{path}: one part of a split file; join the parts first: llama-gguf-split --merge FIRST OUT")
        transposed = next((name for name in self._header.tensors if name.endswith(WEIGHT_IC)), None)
        if transposed is not None:
            raise CheckpointError(f"{path}: {transposed} lies transposed (a gguf-adadim file); use the model it was made from")
        self._infos = {_hf_name(name, path): info for name, info in self._header.tensors.items() if name != ROPE_FREQS}
        embedding = self._infos.get(EMBEDDING)
        factors = self._header.tensors.get(ROPE_FREQS)
        raw = config_from_gguf(
            values, 0 if embedding is None else embedding.shape[0], None if factors is None else self._floats(factors), str(path)
        )
        self.config = ModelConfig.from_hf(_with_biases(raw, self._infos), str(path))
        check_config(self.config, str(path))
        found = {name: TensorSpec(name, info.type.name, info.shape) for name, info in self._infos.items()}
        self.specs: Mapping[str, TensorSpec] = check_specs(found, self.config, str(path))
        self.tied = HEAD not in self._infos or self._same(HEAD, EMBEDDING)
        self.specs = {name: spec for name, spec in self.specs.items() if not (self.tied and name == HEAD)}
        self.config = ModelConfig.from_hf({**self.config.raw, "tie_word_embeddings": self.tied}, str(path))

    def read(self, name: str) -> F32:
        """The tensor, dequantized, as F32."""
        return self.read_rows(name, 0, self._infos[name].shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> F32:
        """Rows [start, stop) in Hugging Face order, dequantized, as F32."""
        info = self._infos[name]
        if len(info.shape) == 1:
            rows = self._floats(info)
        else:
            rows = self._dequantize(info, self._rows(name, start, stop))
            start, stop = 0, len(rows)
        check_finite(rows, "F32", name, str(self.path))
        return rows[start:stop]

    def raw(self, name: str) -> PlainTensor:
        """The tensor in its own dtype where that is F16, BF16 or F32, else dequantized."""
        info = self._infos[name]
        if info.type.name not in FLOATS or len(info.shape) == 1:
            return PlainTensor(name, self.read(name), "F32")
        values: Array = self._rows(name, 0, info.shape[0]).view(FLOATS[info.type.name])
        check_finite(values, info.type.name, name, str(self.path))
        return PlainTensor(name, values, info.type.name)

    def assets(self) -> dict[str, bytes]:
        """All key-values verbatim in a GGUF without tensors, and the Hugging Face files that they amount to."""
        config = json.dumps(dict(self.config.raw), indent=2) + "\n"
        kept = {METADATA_ASSET: encode_header(self._header.metadata, []), "config.json": config.encode()}
        return kept | tokenizer_assets(self._metadata, str(self.path))

    @cached_property
    def sha256(self) -> str:
        """Digest of the file."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def _bytes(self, info: TensorInfo) -> U8:
        start = self._header.data_start + info.offset
        return self._data[start : start + info.nbytes]

    def _rows(self, name: str, start: int, stop: int) -> U8:
        """Block bytes U8[stop - start, row bytes] in Hugging Face order."""
        rows = self._bytes(self._infos[name]).reshape(self._infos[name].shape[0], -1)
        heads = self.config.rotary_heads(name)
        return rows[start:stop] if heads is None else rows[hf_row_index(len(rows), heads)[start:stop]]

    def _floats(self, info: TensorInfo) -> F32:
        """A one-dimensional tensor in Hugging Face order."""
        values = self._dequantize(info, self._bytes(info))
        heads = self.config.rotary_heads(to_hf_name(info.name)) if info.name.endswith(".bias") else None
        return values if heads is None else values[hf_row_index(len(values), heads)]

    def _dequantize(self, info: TensorInfo, data: U8) -> F32:
        if info.type.name in FLOATS:
            return to_f32(np.ascontiguousarray(data).view(FLOATS[info.type.name]), info.type.name)
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused by whoever reads it
                values: F32 = dequantize(np.ascontiguousarray(data), info.type)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: {info.name}: type {info.type.name} cannot be decoded; use another file"
            ) from error
        return values

    def _same(self, left: str, right: str) -> bool:
        rows, columns = self.specs[left].shape
        step = max(1, CHUNK // columns)
        return all(
            np.array_equal(self.read_rows(left, i, min(i + step, rows)), self.read_rows(right, i, min(i + step, rows)))
            for i in range(0, rows, step)
        )


def _parse(data: U8, path: Path) -> GgufHeader:
    try:
        return parse_header(data.data)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; download it again") from error


def _decode_all(header: GgufHeader, path: Path) -> dict[str, Any]:
    try:
        return {key: value.decode() for key, value in header.metadata.items()}
    except ValueError as error:
        raise CheckpointError(f"{path}: metadata is not UTF-8 ({error}); download it again") from error


def _hf_name(name: str, path: Path) -> str:
    try:
        return to_hf_name(name)
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: tensor {name} is not part of a supported decoder; supported: llama, qwen2, qwen3"
        ) from error


def _with_biases(raw: dict[str, Any], infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """GGUF has no flag for biases: the tensors tell."""
    biases = {name.split(".")[3] for name in infos if name.endswith(".bias")}
    if raw["model_type"] != "qwen2" and "self_attn" in biases:
        raw["attention_bias"] = True
    return raw | ({"mlp_bias": True} if "mlp" in biases else {})
