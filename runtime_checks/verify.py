"""Every check that a file has to pass, in one call: bytes, runtimes, tokenizer, and the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from quantize.checkpoint.protocol import Checkpoint
from quantize.errors import FileFormatError
from quantize.kinds import Kind, Wanted, kind_of, mistaken
from quantize.progress import track
from quantize.store import QuantizedStore
from runtime_checks.fold_check import check_folds
from runtime_checks.gguf_check import check_gguf
from runtime_checks.metadata_check import check_metadata
from runtime_checks.model_check import check_model
from runtime_checks.onnx_check import check_onnx
from runtime_checks.onnx_runner import load_graph
from runtime_checks.reference import DamagedFileError
from runtime_checks.results import Check
from runtime_checks.source_check import check_source
from runtime_checks.tokenizer_check import check_tokenizer


def verify(path: Path, source: Checkpoint, store: QuantizedStore | None = None) -> list[Check]:
    """Check a GGUF or an ONNX folder against ``source`` and, if given, against the ``store`` it was written from.

    Damage, or a runtime that refuses the file, is a failed check. Raises FileFormatError if there is no such file at all, and
    CheckpointError or CalibrationError if the source is no use as a measure.
    """
    if not (path / "model.onnx" if path.is_dir() else path).is_file() or kind_of(path) is Kind.ZIP:
        raise FileFormatError(mistaken(path, Wanted.FILE))
    if _foreign(path):
        raise FileFormatError(f"{path}: not written by adadim; measure it: adadim eval {path} --source MODEL")
    tensors = check_onnx if path.is_dir() else check_gguf
    steps: dict[str, Callable[[], list[Check]]] = {  # the cheap ones first
        "tokenizer": lambda: check_tokenizer(path, source),
        "metadata": lambda: [] if path.is_dir() else check_metadata(path, source),
        "tensors": lambda: tensors(path, store),
        "source": lambda: check_source(path, source),
        "folds": lambda: check_folds(path, source),
        "model": lambda: check_model(path, source),
    }
    checks = []
    for name, step in track(steps.items(), "verifying", len(steps)):
        try:
            checks += step()
        except (FileFormatError, DamagedFileError) as error:
            checks.append(Check(f"{name}: the file can be read and run", str(error), math.inf, 0.0, False))
    return checks


def _foreign(path: Path) -> bool:
    """Whether it is an ONNX folder whose nodes say nothing of what they hold. A GGUF's tensors do, whoever wrote it."""
    with suppress(FileFormatError):  # a damaged one is a failed check
        return path.is_dir() and not any(entry.key.startswith("adadim.") for entry in load_graph(path).metadata_props)
    return False
