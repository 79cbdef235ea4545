"""What ``adadim export`` writes, and ``adadim run`` for each of its targets: which writer, and under which names."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, replace
from filecmp import cmp
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from exporter.cli.formats import CONTEXT, DTYPES
from exporter.cli.reports import report_of
from exporter.cli.size import writer_options
from exporter.cli.summary import Row, table, totals_rows
from exporter.inspect import inspect
from exporter.onnx.library import add_library, library_of
from exporter.writers import WRITERS, Writer, writer_of
from quantize.errors import OutputError
from quantize.gguf.files import named_parts
from quantize.kinds import is_store
from quantize.run.pipeline import planned_store
from quantize.store.outputs import Unfinished, check_file
from quantize.store.tensors import QuantizedStore
from quantize.store.writer import check_store_output

if TYPE_CHECKING:
    from quantize.checkpoint import Checkpoint
    from quantize.planning.plan import ModelPlan

OTHER = "exists already, but is not what this command makes; name another --out or pass --force"
DECIDING = ("version", "target", "row_order", "source", "config", "imatrix", "budget")  # of a store's header


@dataclass(frozen=True)
class RunOutputs:
    """Of one target: the store, the file or folder for the runtime in its format (of several files the first), and the report of
    ``verify``."""

    store: Path
    path: Path
    report: Path
    writer: Writer

    @classmethod
    def under(cls, folder: Path, target: str) -> Self:
        """Their places in a folder of their own."""
        writer = writer_of(target)
        return cls(folder / "store", folder / writer.file_name, folder / "verify.json", writer)

    @property
    def out(self) -> Path:
        """What the writer is told to write."""
        return self.path.with_name(self.writer.file_name)

    def check(self, force: bool, placed: bool = True) -> None:
        """Raises OutputError before any work for what would not be replaced after it, nor can be what an earlier run made.

        ``placed``: whether ``path`` is known.
        """
        resumed = not force and is_store(self.store)
        if not resumed:
            check_store_output(self.store, force)
            self.writer.check_output(self.path, force)
        if not (resumed and (self.path.exists() or not placed)):
            check_file(self.report, force)

    def placed(self, args: Namespace, source: Checkpoint, plan: ModelPlan) -> Self:
        """``path`` is known from a plan only where a file may be split; a plan tells too what float16 is too coarse for. Raises
        ExportError, OutputError."""
        if args.split_size is None and args.onnx_dtype == DTYPES[0]:
            return self
        with planned_store(source, plan) as store:
            first = self.writer.files(store, self.out, **writer_options(args, self.writer))[0]
        out = replace(self, path=first)
        out.check(args.force)
        return out


@dataclass(frozen=True)
class Made:
    """What of a target's outputs is there already, whole and made by the same command."""

    outputs: RunOutputs
    store: QuantizedStore | None = None
    exported: bool = False
    report: dict[str, Any] | None = None

    def taken(self) -> list[str]:
        """What to tell."""
        outputs = self.outputs
        there = {outputs.store: self.store, outputs.path: self.exported or None, outputs.report: self.report}
        names = [str(path) for path, what in there.items() if what is not None]
        return [f"taken as an earlier run of this command left it: {', '.join(names)}"] if names else []


def found(args: Namespace, source: Checkpoint, plan: ModelPlan, outputs: RunOutputs) -> Made:
    """Raises OutputError for what is there and not just what this command makes, StoreError for a damaged store."""
    if args.force or not outputs.store.exists():
        return Made(outputs)
    store = QuantizedStore(outputs.store)
    with planned_store(source, plan) as planned:
        if _made_of(store) != _made_of(planned):
            raise OutputError(f"{outputs.store}: {OTHER}")
    if not outputs.path.exists():
        return Made(outputs, store)
    if not _is_export(args, store, outputs):
        raise OutputError(f"{outputs.path}: {OTHER}")
    if not outputs.report.exists():
        return Made(outputs, store, exported=True)
    if report_of("verify")(outputs.report) is not None:
        raise OutputError(f"{outputs.report}: {OTHER}")
    report = json.loads(outputs.report.read_bytes() or b"null")
    return Made(outputs, store, exported=True, report=report)


def _made_of(store: QuantizedStore) -> list[object]:
    """All that decides what is in a store, as far as it is known before the work."""
    text = store.header.get("calibration") or {}
    shapes = {name: list(record.shape) for name, record in store.records.items()}
    return [shapes, *map(store.header.get, DECIDING), *map(text.get, ("text", "sha256", "tokens", "sequence"))]


def _is_export(args: Namespace, store: QuantizedStore, outputs: RunOutputs) -> bool:
    """Whether the file or folder holds, byte for byte, what is written from ``store``: by writing it again."""
    with Unfinished(outputs.path.with_name(f"{outputs.path.name}.again"), folder=True) as again:
        write(args, store, again.path / outputs.writer.file_name, outputs.writer)
        ours, theirs = _files(again.path, [again.path]), _files(outputs.path.parent, named_parts(outputs.path))
        return ours.keys() == theirs.keys() and all(cmp(ours[name], theirs[name], shallow=False) for name in ours)


def _files(folder: Path, paths: Iterable[Path]) -> dict[str, Path]:
    items = (item for path in paths for item in (path, *path.rglob("*")))
    return {item.relative_to(folder).as_posix(): item for item in items if item.is_file()}


def export(args: Namespace) -> str:
    """Write what the options ask for; what to tell."""
    store = QuantizedStore(args.store)
    library = library_of(store) if getattr(args, "with_library", False) else None
    told = write(args, store, args.out, WRITERS[args.format])
    if library is not None:
        add_library(args.out, library)
    return told


def write(args: Namespace, store: QuantizedStore, out: Path, writer: Writer) -> str:
    """One file or folder; its totals."""
    path = writer.write(store, out, force=args.force, **writer_options(args, writer))
    if not (path.is_file() or path.is_dir()):  # a pipe or a device
        return table(str(path), [("written", f"to {path}")])
    rows = totals_rows(inspect(path)) + ([_context_row(args, store)] if "context" in writer.options else [])
    return table(str(path), rows if path == out else [*rows, ("files", f"{len(named_parts(path))}, of which this is the first")])


def _context_row(args: Namespace, store: QuantizedStore) -> Row:
    held = min(args.context, store.config.context)
    cut = held < args.context and args.context != CONTEXT
    return "context", f"{held:,} tokens" + (f", all that the model holds: --context {args.context} is cut" if cut else "")
