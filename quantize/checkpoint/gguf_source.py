"""A GGUF file of any type that gguf-py can dequantize as a source, under Hugging Face names and row order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import dequantize

from quantize.architecture.families import rotary_heads
from quantize.checkpoint.expected import check_config, check_specs
from quantize.checkpoint.floats import CHUNK, FLOATS, check_finite, to_f32
from quantize.checkpoint.gguf_config import ARCHITECTURES, config_from_gguf
from quantize.checkpoint.gguf_tokenizer import tokenizer_assets
from quantize.checkpoint.gguf_values import TOKENIZER, GgufValues
from quantize.checkpoint.row_order import hf_row_index
from quantize.errors import CheckpointError
from quantize.foreign import foreign_gguf
from quantize.gguf.container import TensorInfo, encode_header
from quantize.gguf.files import GgufFiles, Misplaced, open_files
from quantize.gguf.names import WEIGHT_IC, to_hf_name
from quantize.model_config import EMBEDDING, HEAD, ModelConfig
from quantize.types import F32, U8, Array, PlainTensor, TensorSpec

ROPE_FREQS = "rope_freqs.weight"
METADATA_ASSET = "metadata.gguf"


class GgufCheckpoint:
    """See ``Checkpoint``. Raises CheckpointError at once for a malformed file or an unknown architecture."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files, values = _open(path)
        self._metadata = values
        other = foreign_gguf(path, values)
        if other is not None:
            raise CheckpointError(other)
        transposed = next((name for name in self._files.tensors if name.endswith(WEIGHT_IC)), None)
        if transposed is not None:
            raise CheckpointError(f"{path}: {transposed} lies transposed (a gguf-adadim file); use the model it was made from")
        self._infos = _by_hf_name(self._files.tensors, str(path))
        self.config, self.specs = _config_and_specs(self._infos, values, self._rope_factors(), str(path))
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
        kept = {METADATA_ASSET: encode_header(self._files.metadata, []), "config.json": config.encode()}
        return kept | tokenizer_assets(self._metadata, str(self.path))

    @property
    def sha256(self) -> str:
        """Digest of the file, or of its files."""
        return self._files.sha256

    def _rope_factors(self) -> F32 | None:
        info = self._files.tensors.get(ROPE_FREQS)
        if info is None:
            return None
        if info.type.name != "F32" or len(info.shape) != 1:
            raise CheckpointError(
                f"{self.path}: {ROPE_FREQS} is {info.type.name} {info.shape}, not a row of F32; use another file"
            )
        return self._floats(info)

    def _rows(self, name: str, start: int, stop: int) -> U8:
        """Block bytes U8[stop - start, row bytes] in Hugging Face order."""
        rows = self._files.bytes_of(self._infos[name]).reshape(self._infos[name].shape[0], -1)
        heads = rotary_heads(self.config, name)
        return rows[start:stop] if heads is None else rows[hf_row_index(len(rows), heads)[start:stop]]

    def _floats(self, info: TensorInfo) -> F32:
        """A one-dimensional tensor in Hugging Face order."""
        values = self._dequantize(info, self._files.bytes_of(info))
        heads = rotary_heads(self.config, to_hf_name(info.name)) if info.name.endswith(".bias") else None
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


def other_gguf(path: Path) -> str | None:
    """What to say of a GGUF that is sound, but no language model; None for any other file."""
    try:
        return foreign_gguf(path, _open(path)[1])
    except CheckpointError:
        return None


def _open(path: Path) -> tuple[GgufFiles, GgufValues]:
    try:
        files = open_files(path)
        return files, GgufValues(files.metadata, str(path))
    except Misplaced as error:
        raise CheckpointError(f"{path}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; download it again") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _by_hf_name(tensors: Mapping[str, TensorInfo], where: str) -> dict[str, TensorInfo]:
    """Every tensor but the rotary factors. Raises CheckpointError for one that no decoder here has."""
    out = {}
    for name, info in tensors.items():
        try:
            if name != ROPE_FREQS:
                out[to_hf_name(name)] = info
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{where}: tensor {name} is not part of a supported decoder; supported: llama, qwen2, qwen3"
            ) from error
    return out


def _config_and_specs(
    infos: Mapping[str, TensorInfo], values: GgufValues, rope_factors: F32 | None, where: str
) -> tuple[ModelConfig, Mapping[str, TensorSpec]]:
    values.check_tokenizer()
    raw = config_from_gguf(values, _vocab_size(infos, values, where), rope_factors, where)
    config = ModelConfig.from_hf(_with_biases(raw, infos), where)
    check_config(config, where)
    return config, check_specs(
        {name: TensorSpec(name, info.type.name, info.shape) for name, info in infos.items()}, config, where
    )


def check_gguf_model(tensors: Mapping[str, TensorInfo], values: GgufValues, where: str) -> None:
    """Whether the tensors are those that the metadata promise, in a dense model of an architecture that is known here.

    llama.cpp refuses any other tensor, any other shape, and a file without a word on its tokenizer. Raises CheckpointError.
    """
    if "general.architecture" not in values:
        raise values.wrong("metadata key 'general.architecture' is missing")
    arch = values["general.architecture"]
    layers = values.size(f"{arch}.block_count")
    if layers > len(tensors):
        raise values.wrong(f"{arch}.block_count is {layers}, where {len(tensors)} tensors are")
    if f"{TOKENIZER}model" not in values:
        raise values.wrong(f"metadata key '{TOKENIZER}model' is missing")
    values.check_tokenizer()
    if arch in ARCHITECTURES and not values.get(f"{arch}.expert_count"):
        _config_and_specs(_by_hf_name(tensors, where), values, None, where)


def _vocab_size(infos: Mapping[str, TensorInfo], values: GgufValues, where: str) -> int:
    """Rows of the embedding, 0 without one. Raises CheckpointError unless there is a token for each."""
    embedding, key = infos.get(EMBEDDING), f"{TOKENIZER}tokens"
    rows = 0 if embedding is None else embedding.shape[0]
    if rows and key in values and len(values[key]) != rows:
        held = len(values[key])
        raise CheckpointError(f"{where}: metadata key {key} has {held} entries, the embedding {rows} rows; download it again")
    return rows


def _with_biases(raw: dict[str, Any], infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """GGUF has no flag for biases: the tensors tell."""
    biases = {name.split(".")[3] for name in infos if name.startswith("model.layers.") and name.endswith(".bias")}
    if raw["model_type"] != "qwen2" and "self_attn" in biases:
        raw["attention_bias"] = True
    return raw | ({"mlp_bias": True} if "mlp" in biases else {})
