"""What a source model is to everybody else: specs from headers, tensors one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from quantize.model_config import ModelSizes
from quantize.types import F32, PlainTensor, TensorSpec


class Checkpoint(Protocol):
    """A source model under Hugging Face names and row order, whatever its container; nothing is read before it is asked for."""

    @property
    def path(self) -> Path:
        """The directory or file."""

    @property
    def config(self) -> ModelSizes:
        """Sizes; ``config.raw`` is a config.json."""

    @property
    def tied(self) -> bool:
        """Whether the head equals the embedding, by comparing the tensors; then ``specs`` has no lm_head.weight."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor in model order."""

    @property
    def sha256(self) -> str:
        """Hex digest of the source's content, computed once, when first asked for."""

    def read(self, name: str) -> F32:
        """The tensor as F32; may be a read-only map. Raises CheckpointError if a value is not finite."""

    def read_rows(self, name: str, start: int, stop: int) -> F32:
        """Rows [start, stop) of the tensor as F32. Raises CheckpointError if a value is not finite."""

    def raw(self, name: str) -> PlainTensor:
        """The tensor in the source's own floats: F16 and BF16 bits kept, all else as F32. Raises as ``read`` does."""

    def assets(self) -> dict[str, bytes]:
        """Small files that the writers need, by name: config.json, tokenizer.json and their like."""
