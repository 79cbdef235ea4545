"""What ``adadim export`` writes, and ``adadim run`` for each of its targets: which writer, and under which names."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from exporter.cli.formats import CONTEXT
from exporter.cli.reports import report_of
from exporter.cli.summary import Row, table, totals_rows
from exporter.inspect import inspect
from exporter.onnx.library import add_library, library_of
from exporter.writers import WRITERS, Writer, writer_of
from quantize.errors import OutputError
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
    """Of one target: the store, the file or folder for the runtime in its format, and the report of ``verify``."""

    store: Path
    path: Path
    report: Path
    writer: Writer

    @classmethod
    def under(cls, folder: Path, target: str) -> Self:
        """Their places in a folder of their own."""
        writer = writer_of(target)
        return cls(folder / "store", folder / writer.file_name, folder / "verify.json", writer)

    def check(self, force: bool) -> None:
        """Raises OutputError before any work for what would not be replaced after it, nor can be what an earlier run made."""
        resumed = not force and is_store(self.store)
        if not resumed:
            check_store_output(self.store, force)
            self.writer.check_output(self.path, force)
        if not (resumed and self.path.exists()):
            check_file(self.report, force)


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
        path = again.path / outputs.path.name
        write(args, store, path, outputs.writer)
        ours, theirs = _files(path), _files(outputs.path)
        return ours.keys() == theirs.keys() and all(cmp(ours[name], theirs[name], shallow=False) for name in ours)


def _files(path: Path) -> dict[str, Path]:
    return {item.relative_to(path).as_posix(): item for item in [path, *path.rglob("*")] if item.is_file()}


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
    writer.write(store, out, force=args.force, **{name: getattr(args, name) for name in writer.options})
    if not (out.is_file() or out.is_dir()):  # a pipe or a device
        return table(str(out), [("written", f"to {out}")])
    return table(str(out), [*totals_rows(inspect(out)), *([_context_row(args, store)] if "context" in writer.options else [])])


def _context_row(args: Namespace, store: QuantizedStore) -> Row:
    held = min(args.context, store.config.context)
    cut = held < args.context and args.context != CONTEXT
    return "context", f"{held:,} tokens" + (f", all that the model holds: --context {args.context} is cut" if cut else "")
