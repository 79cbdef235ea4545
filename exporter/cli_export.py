"""What ``adadim export`` writes, and ``adadim run`` for each of its targets: which writer, and under which names."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from exporter.inspect import inspect
from exporter.library import add_library, library_of
from exporter.summary import table, totals_rows
from exporter.targets import GGUF_TARGETS
from quantize.outputs import check_file
from quantize.store import QuantizedStore, check_store_output


@dataclass(frozen=True)
class RunOutputs:
    """Of one target: the store, the file or folder for the runtime in its format, and the report of ``verify``."""

    store: Path
    path: Path
    report: Path
    file_format: str

    @classmethod
    def under(cls, out: Path, target: str) -> Self:
        """Their places in ``run --out``."""
        folder, file_format = out / target, "gguf" if target in GGUF_TARGETS else "onnx"
        name = "model.gguf" if file_format == "gguf" else "onnx"
        return cls(folder / "store", folder / name, folder / "verify.json", file_format)

    def check(self, force: bool) -> None:
        """Raises OutputError before any work for what would not be replaced after it."""
        check_store_output(self.store, force)
        check_file(self.report, force)
        if self.file_format == "gguf":
            check_file(self.path, force)
        else:
            from exporter.onnx_file import check_onnx_output

            check_onnx_output(self.path, force)


def export(args: Namespace) -> str:
    """Write what the options ask for; what to tell."""
    store = QuantizedStore(args.store)
    library = library_of(store) if getattr(args, "with_library", False) else None
    told = write(args, store, args.out, args.format)
    if library is not None:
        add_library(args.out, library)
    return told


def write(args: Namespace, store: QuantizedStore, out: Path, file_format: str) -> str:
    """One file or folder; its totals."""
    if file_format == "gguf":
        from exporter.gguf_file import write_gguf

        write_gguf(store, out, tokenizer_pre=args.tokenizer_pre, force=args.force)
    else:
        from exporter.onnx_file import write_onnx

        write_onnx(store, out, accuracy_level=args.accuracy_level, context=args.context, force=args.force)
    return table(str(out), totals_rows(inspect(out)))
