"""A file or folder that was exported, and what is known of it. A new format is one class and one row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from exporter.inspect import inspect, read_gguf_files
from exporter.writers import writer_at
from quantize.errors import FileFormatError, asked
from quantize.model_config import ModelSizes
from quantize.onnx.reader import MODEL_FILE, read_graph
from runtime_checks.runtimes.onnx_runner import OnnxRunner, exported_context, is_halved, rounds_inputs
from runtime_checks.runtimes.runners import LlamaRunner, Runner
from runtime_checks.runtimes.weights import TRANSPOSED, GgufWeights, OnnxWeights, Weights, open_gguf


class Exported(Protocol):
    """Opened lazily: each answer reads what it needs, and raises FileFormatError for a damaged file."""

    path: Path
    writer: str  # a key of exporter.writers.WRITERS

    @property
    def model_file(self) -> Path:
        """The file itself, or that of the folder without which there is no model."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What it says of itself."""

    @property
    def describes_itself(self) -> bool:
        """Whether its tensors say what they hold, so that they can be checked."""

    @property
    def context(self) -> int | None:
        """Tokens that it holds at most, or None if nothing limits them."""

    @property
    def nbytes(self) -> int:
        """Of the model, without what a folder holds beside it."""

    @property
    def halved(self) -> bool:
        """Whether it computes in float16, so that its vectors are float16 too."""

    @property
    def unrunnable(self) -> str | None:
        """Why no runtime takes it, or None."""

    def weights(self, config: ModelSizes) -> Weights:
        """Decoded, each read when asked for."""

    def runner(self, context: int) -> Runner:
        """It in its own runtime, as shipped. Raises FileFormatError where there is none, or it refuses the file."""

    def exact_runner(self) -> Runner | None:
        """The same with activations left in float32, where its runtime can."""

    def simulating_runner(self) -> Runner | None:
        """The same with those inputs rounded for which the file has scales, and products of floats; None where it has none."""


class _Gguf:
    writer = "gguf"
    describes_itself, context, halved = True, None, False

    def __init__(self, path: Path) -> None:
        self.path = self.model_file = path

    @property
    def metadata(self) -> Mapping[str, Any]:
        return open_gguf(self.path).metadata

    @property
    def nbytes(self) -> int:
        return read_gguf_files(self.path).nbytes

    @property
    def unrunnable(self) -> str | None:
        names = [item["name"] for item in inspect(self.path)["tensors"] if item["name"].endswith(TRANSPOSED)]
        return f"{names[0]} and {len(names) - 1} more are stored transposed, which no stock llama.cpp runs" if names else None

    def weights(self, config: ModelSizes) -> Weights:
        return GgufWeights(self.path, config)

    def runner(self, context: int) -> Runner:
        if self.unrunnable is not None:
            raise FileFormatError(
                f"{self.path}: {self.unrunnable}; use {asked('weights_only', True)} to run the decoded weights in torch"
            )
        return LlamaRunner(self.path, context)

    def exact_runner(self) -> Runner | None:
        return None

    def simulating_runner(self) -> Runner | None:
        return None


class _OnnxFolder:
    writer = "onnx"
    unrunnable = None

    def __init__(self, path: Path) -> None:
        self.path, self.model_file = path, path / MODEL_FILE

    @property
    def metadata(self) -> Mapping[str, Any]:
        return read_graph(self.path).metadata

    @property
    def describes_itself(self) -> bool:
        return any(key.startswith("adadim.") for key in self.metadata)

    @property
    def context(self) -> int | None:
        return exported_context(self.path)

    @property
    def nbytes(self) -> int:
        return sum((self.path / name).stat().st_size for name in {MODEL_FILE, *read_graph(self.path).locations})

    @property
    def halved(self) -> bool:
        return is_halved(read_graph(self.path).model)

    def weights(self, config: ModelSizes) -> Weights:
        return OnnxWeights(self.path)

    def runner(self, context: int) -> Runner:
        return OnnxRunner(self.path)

    def exact_runner(self) -> Runner | None:
        return OnnxRunner(self.path, accuracy_level=0, static=False)

    def simulating_runner(self) -> Runner | None:
        static = rounds_inputs(read_graph(self.path).model)
        return OnnxRunner(self.path, accuracy_level=0) if static else None


EXPORTED: dict[str, Callable[[Path], Exported]] = {"gguf": _Gguf, "onnx": _OnnxFolder}  # by writer


def open_exported(path: Path) -> Exported:
    """What ``writer_at`` tells; nothing is read yet."""
    return EXPORTED[writer_at(path)](path)


def exported_runner(path: Path, context: int) -> Runner:
    """``Exported.runner``, for a child process."""
    return open_exported(path).runner(context)
