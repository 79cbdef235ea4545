"""A GGUF of a family that is known by name as a source, under Hugging Face names and row order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.architecture.families import rotary_heads
from quantize.checkpoint.expected import check_config, check_specs
from quantize.checkpoint.gguf_config import ARCHITECTURES, config_from_gguf
from quantize.checkpoint.gguf_sizes import check_token_count
from quantize.checkpoint.gguf_tensors import GgufTensors
from quantize.checkpoint.gguf_values import TOKENIZER, GgufValues
from quantize.checkpoint.row_order import Index, hf_row_index
from quantize.errors import CheckpointError
from quantize.gguf.container import TensorInfo
from quantize.gguf.files import GgufFiles
from quantize.gguf.names import to_hf_name
from quantize.model_config import EMBEDDING, HEAD, ModelConfig
from quantize.types import F32, TensorSpec

ROPE_FREQS = "rope_freqs.weight"


class GgufCheckpoint(GgufTensors):
    """See ``Checkpoint``; under Hugging Face names and row order. Raises CheckpointError at once for a malformed file."""

    def __init__(self, path: Path, files: GgufFiles, values: GgufValues) -> None:
        infos = _by_hf_name(files.tensors, str(path))
        super().__init__(path, files, values, infos)
        self.config, self.specs = _config_and_specs(infos, values, self._rope_factors(), str(path))
        self.tied = HEAD not in infos or self._same(HEAD, EMBEDDING)
        self.specs = {name: spec for name, spec in self.specs.items() if not (self.tied and name == HEAD)}
        self.config = ModelConfig.from_hf({**self.config.raw, "tie_word_embeddings": self.tied}, str(path))

    def _own_assets(self) -> dict[str, bytes]:
        return {"config.json": (json.dumps(dict(self.config.raw), indent=2) + "\n").encode()}

    def _order(self, name: str) -> Index | None:
        """q and k of llama interleave a head's rotary pairs."""
        heads = rotary_heads(self.config, name)
        return None if heads is None else hf_row_index(self._infos[name].shape[0], heads)

    def _rope_factors(self) -> F32 | None:
        info = self._files.tensors.get(ROPE_FREQS)
        if info is None:
            return None
        if info.type.name != "F32" or len(info.shape) != 1:
            raise CheckpointError(
                f"{self.path}: {ROPE_FREQS} is {info.type.name} {info.shape}, not a row of F32; use another file"
            )
        return self._dequantize(info, self._files.bytes_of(info))


def is_family(values: GgufValues) -> bool:
    """Whether it is a dense model of an architecture that is known by name."""
    arch = values.get("general.architecture")
    return arch in ARCHITECTURES and not values.get(f"{arch}.expert_count")


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
    if is_family(values):
        _config_and_specs(_by_hf_name(tensors, where), values, None, where)


def _vocab_size(infos: Mapping[str, TensorInfo], values: GgufValues, where: str) -> int:
    """Rows of the embedding, 0 without one. Raises CheckpointError unless there is a token for each."""
    embedding = infos.get(EMBEDDING)
    rows = 0 if embedding is None else embedding.shape[0]
    if rows:
        check_token_count(values, rows, where)
    return rows


def _with_biases(raw: dict[str, Any], infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """GGUF has no flag for biases: the tensors tell."""
    biases = {name.split(".")[3] for name in infos if name.startswith("model.layers.") and name.endswith(".bias")}
    if raw["model_type"] != "qwen2" and "self_attn" in biases:
        raw["attention_bias"] = True
    return raw | ({"mlp_bias": True} if "mlp" in biases else {})
