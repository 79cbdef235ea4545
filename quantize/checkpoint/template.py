"""A float file of a runtime as a source: of any decoder, and its own template. What is not quantized goes into the new file as it
is, and the runtime itself tells what it multiplies, by what, and what it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from quantize.model_config import ModelSizes, is_linear
from quantize.moments import Moments, Product, Text
from quantize.types import F32, I64, PlainTensor, TensorSpec

SKELETON_ASSET = "skeleton.onnx"  # of a store: the graph of a template that is an ONNX folder
OUTSIDE = "outside the blocks"  # why a matrix stays floats
UNSEEN, TOGETHER, ROUTER = "multiplied by nothing", "a stack that is multiplied whole", "a router"
BIASES = "biases, a row of them for each expert"


class Template(ABC):
    """See ``Checkpoint``. ``twin``: the same model as a folder that torch runs. ``runtime``: what runs the file itself."""

    runtime: ClassVar[str]
    writer: ClassVar[str]  # the format of its file, and of what is made of it
    path: Path
    config: ModelSizes
    tied: bool
    twin: Path | None

    @property
    @abstractmethod
    def read_by_torch(self) -> bool:
        """Whether it is a file that transformers may read, without a twin."""

    @property
    @abstractmethod
    def has_experts(self) -> bool:
        """Whether some of its matrices see some of the tokens alone."""

    @property
    @abstractmethod
    def hides_experts(self) -> bool:
        """Whether the runtime does not tell which tokens are sent to an expert: it computes each for all, or all in one node."""

    @property
    @abstractmethod
    def products(self) -> Sequence[Product]:
        """What the runtime multiplies, by this source's names, in its order."""

    @abstractmethod
    def logits(self, tokens: I64) -> F32:
        """What the runtime predicts after each of I64[n] tokens, F32[n, vocab]. Raises CheckpointError where it cannot run."""

    @abstractmethod
    def measure(self, text: Text, products: Sequence[Product], folder: Path) -> dict[int, Moments]:
        """By site, mapped from files in ``folder``. Raises CalibrationError, CheckpointError."""

    @property
    @abstractmethod
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor in the file's order; what stays floats has its reason."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """See Checkpoint."""

    @abstractmethod
    def read(self, name: str) -> F32:
        """See Checkpoint."""

    @abstractmethod
    def read_rows(self, name: str, start: int, stop: int) -> F32:
        """See Checkpoint."""

    @abstractmethod
    def raw(self, name: str) -> PlainTensor:
        """See Checkpoint."""

    @abstractmethod
    def assets(self) -> dict[str, bytes]:
        """See Checkpoint."""

    def is_quantized(self, name: str) -> bool:
        """Whether it is a matrix of a block, or a stack of them, that does not stay floats."""
        spec = self.specs.get(name)
        return spec is not None and is_linear(name, spec.shape) and not spec.kept
