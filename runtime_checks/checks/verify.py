"""Every check that a file has to pass, in one call: bytes, runtimes, tokenizer, and the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from quantize.checkpoint import Checkpoint, open_checkpoint
from quantize.child import ChildEnded
from quantize.errors import FileFormatError
from quantize.kinds import Kind, Wanted, kind_of, mistaken
from quantize.planning.memory import fits
from quantize.progress import track
from quantize.store.tensors import QuantizedStore
from quantize.workers import borrowed
from runtime_checks.checks.claims_check import check_claims
from runtime_checks.checks.fold_check import check_folds
from runtime_checks.checks.gguf_assets_check import check_gguf_assets
from runtime_checks.checks.gguf_check import check_gguf
from runtime_checks.checks.graph_check import check_graph
from runtime_checks.checks.metadata_check import check_metadata
from runtime_checks.checks.model_check import check_model
from runtime_checks.checks.onnx_assets_check import check_onnx_assets
from runtime_checks.checks.onnx_check import check_onnx
from runtime_checks.checks.seal_check import check_seal
from runtime_checks.checks.source_check import check_source
from runtime_checks.checks.tokenizer_check import check_tokenizer
from runtime_checks.measure.results import Check
from runtime_checks.reference.decode import DamagedFileError
from runtime_checks.runtimes.exported import open_exported
from runtime_checks.runtimes.isolated import checking_children

Step = Callable[[Path, Checkpoint, QuantizedStore | None], list[Check]]
_SOON: dict[str, Step] = {  # of every format, the cheap ones first
    "seal": lambda path, *_: check_seal(path),
    "claims": lambda path, _, store: check_claims(path, store),
    "tokenizer": lambda path, source, _: check_tokenizer(path, source),
}
_LATE: dict[str, Step] = {
    "source": lambda path, source, _: check_source(path, source),
    "folds": lambda path, source, _: check_folds(path, source),
    "model": lambda path, source, _: check_model(path, source),
}
_GGUF: dict[str, Step] = {
    "metadata": lambda path, source, _: check_metadata(path, source),
    "assets": check_gguf_assets,
    "tensors": lambda path, _, store: check_gguf(path, store),
}
_ONNX: dict[str, Step] = {
    "assets": check_onnx_assets,
    "graph": lambda path, source, _: check_graph(path, source),
    "tensors": lambda path, _, store: check_onnx(path, store),
}
_STEPS = {"gguf": _SOON | _GGUF | _LATE, "onnx": _SOON | _ONNX | _LATE}  # by writer
OF_TEXTS = ("tokenizer",)
DECODED = 3.0  # times the float32 weights: what a check of the whole model holds at once, runtime included


def verify(path: Path, source: Checkpoint, store: QuantizedStore | None = None) -> list[Check]:
    """Check a GGUF or an ONNX folder against ``source`` and, if given, against the ``store`` it was written from.

    Damage, or a runtime that refuses the file or ends with it, is a failed check: every step runs in a child process, which opens
    ``source`` and ``store`` by their paths. Raises FileFormatError if there is no such file at all, and
    CheckpointError or CalibrationError if the source is no use as a measure.
    """
    _check_ours(path)
    steps = steps_of(path)
    return [check for name in track(steps, "verifying", len(steps)) for check in _checked(name, path, source, store)]


def verify_all(files: Mapping[Path, QuantizedStore | None], source: Checkpoint) -> list[list[Check]]:
    """``verify`` of each file of one source against its store, two steps side by side where there is the memory for it."""
    for path in files:
        _check_ours(path)
    steps = {path: list(steps_of(path)) for path in files}
    places = range(1, 1 + max(map(len, steps.values()), default=0))
    tasks = [
        (path, steps[path][-place]) for place in places for path in files if place <= len(steps[path])
    ]  # the dear ones first
    idle = SimpleQueue[int]()
    lanes = 2 if len(files) > 1 and fits(source.specs, 2 * DECODED) else 1
    for lane in range(lanes):
        idle.put(lane)

    def one(task: tuple[Path, str]) -> list[Check]:
        path, name = task
        with borrowed(idle) as lane:
            return _checked(name, path, source, files[path], lane)

    with ThreadPoolExecutor(lanes) as pool:
        runs = [partial(copy_context().run, one, task) for task in tasks]  # errors are spelled there as here
        found = dict(zip(tasks, track(pool.map(lambda run: run(), runs), "verifying", len(tasks)), strict=True))
    return [[check for name in steps[path] for check in found[path, name]] for path in files]


def steps_of(path: Path) -> dict[str, Step]:
    """Those of its format, by name, the cheap ones first."""
    return _STEPS[open_exported(path).writer]


def _check_ours(path: Path) -> None:
    """Raises FileFormatError if there is no such file, or none that adadim wrote."""
    if not open_exported(path).model_file.is_file() or kind_of(path) is Kind.ZIP:
        raise FileFormatError(mistaken(path, Wanted.FILE))
    if _foreign(path):
        raise FileFormatError(f"{path}: not written by adadim; measure it: adadim eval {path} --source MODEL")


def _checked(name: str, path: Path, source: Checkpoint, store: QuantizedStore | None, lane: int = 0) -> list[Check]:
    """One of its steps in a child of that lane; a file that cannot be read, or that ends it, is a miss."""
    texts, runtimes = checking_children(lane)
    child = texts if name in OF_TEXTS else runtimes
    try:
        return child.call(check_step, name, path, source.path, None if store is None else store.path)
    except (FileFormatError, DamagedFileError) as error:
        return [_missed(name, str(error))]
    except ChildEnded as error:
        return [_missed(name, f"{path}: the process that ran it {error}")]


def check_step(name: str, path: Path, source: Path, store: Path | None) -> list[Check]:
    """One of the file's steps, all it needs opened anew: it runs in a child process. Raises FileFormatError, DamagedFileError."""
    step = steps_of(path)[name]
    return step(path, open_checkpoint(source), None if store is None else QuantizedStore(store))


def _missed(name: str, reason: str) -> Check:
    return Check(f"{name}: the file can be read and run", reason, math.inf, 0.0, False)


def _foreign(path: Path) -> bool:
    """Whether it is an ONNX folder whose nodes say nothing of what they hold. A GGUF's tensors do, whoever wrote it."""
    with suppress(FileFormatError):  # a damaged one is a failed check
        return not open_exported(path).describes_itself
    return False
