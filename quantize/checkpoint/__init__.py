"""Source models: a Hugging Face directory or a GGUF file. A kind's reader is imported when one is opened: a child process that
knows a tokenizer alone needs none."""

from __future__ import annotations

from pathlib import Path

from quantize.checkpoint.protocol import Checkpoint
from quantize.errors import CheckpointError, ConfigError, asked
from quantize.foreign import TO_MERGE
from quantize.hub import to_download
from quantize.kinds import MAKE, Kind, Wanted, is_template, kind_of, mistaken

__all__ = ["Checkpoint", "check_folder", "open_checkpoint"]

ADAPTER = "adapter_config.json"


def check_folder(path: Path) -> None:
    """Raises CheckpointError for a folder that is no Hugging Face model."""
    if (path / ADAPTER).is_file():  # transformers loads the base that it names, and the adapter on top
        raise CheckpointError(f"{path}: holds a LoRA adapter ({ADAPTER}); {TO_MERGE}")
    if not (path / "config.json").is_file() or kind_of(path) is Kind.ONNX:
        raise CheckpointError(mistaken(path, Wanted.SOURCE))


def open_checkpoint(path: Path, twin: Path | None = None) -> Checkpoint:
    """The source model at ``path``, its headers read and checked; ``twin``: of a template the same as a folder that torch runs.

    Raises CheckpointError for whatever cannot be used."""
    if twin is not None and not twin.is_file():  # a GGUF that transformers reads
        check_folder(twin)
    if is_template(path):
        from quantize.checkpoint.onnx_template import OnnxTemplate

        return OnnxTemplate(path, twin)
    if path.is_dir():
        from quantize.checkpoint.huggingface import HuggingFaceCheckpoint

        check_folder(path)
        _check_alone(path, twin)
        return HuggingFaceCheckpoint(path)
    return _open_gguf(path, twin)


def _open_gguf(path: Path, twin: Path | None) -> Checkpoint:
    from quantize.checkpoint.gguf_source import GgufCheckpoint, is_family
    from quantize.checkpoint.gguf_template import GgufTemplate
    from quantize.checkpoint.gguf_tensors import open_language_model

    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory; {to_download(path) or MAKE[Wanted.SOURCE]}")
    if not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"{path}: no regular file; {MAKE[Wanted.SOURCE]}")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if magic != b"GGUF":
        raise CheckpointError(mistaken(path, Wanted.SOURCE))
    files, values = open_language_model(path)
    if is_family(values):
        _check_alone(path, twin)
        return GgufCheckpoint(path, files, values)
    return GgufTemplate(path, files, values, twin)


def _check_alone(path: Path, twin: Path | None) -> None:
    if twin is not None:
        raise ConfigError(f"{asked('torch', str(twin))}: {path} is run by torch itself; drop {asked('torch')}")
