"""WRITERS: what makes a store a file for a runtime. A new format is one folder, and one class and one row here.

A writer's own libraries are imported when it is first used: each needs some that the others do not.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from exporter.targets import TARGETS
from quantize.checkpoint import Checkpoint
from quantize.checkpoint.floats import FLOATS
from quantize.checkpoint.tokenizer_files import DEFAULT, chat_templates, ids_without_rows
from quantize.store.tensors import QuantizedStore


class Writer(Protocol):
    """From a store to one kind of file."""

    word: str  # after `adadim export`
    file_name: str  # of what `run` makes
    options: tuple[str, ...]  # that ``size`` and ``write`` take beside ``force``

    def check(self, source: Checkpoint, tokenizer_pre: str | None) -> None:
        """Raises ExportError for a source that it cannot write, CheckpointError for its damaged files.

        ``tokenizer_pre``: as for ``write_gguf``; "" if it may be given later.
        """

    def beyond(self, template: str) -> list[str]:
        """What the runtime cannot render of a readable chat template."""

    def check_output(self, path: Path, force: bool) -> None:
        """Raises OutputError for what ``write`` would not replace; ``path``: what it would return."""

    def files(self, store: QuantizedStore, out: Path, **options: Any) -> list[Path]:  # noqa: ANN401
        """What ``write`` would make, from the store's headers alone; a runtime is given the first. Raises ExportError."""

    def size(self, store: QuantizedStore, **options: Any) -> int:  # noqa: ANN401
        """Bytes of the model, all its files, from the store's headers alone. Raises ExportError."""

    def write(self, store: QuantizedStore, out: Path, **options: Any) -> Path:  # noqa: ANN401
        """``out``, written, or the first of the files that it is split into. Raises ExportError, OutputError."""


def writer_at(path: Path) -> str:
    """The key in WRITERS of what makes something like ``path``: a folder is ONNX, anything else a GGUF. Nothing is read."""
    return "onnx" if path.is_dir() else "gguf"


class _Gguf:
    word, file_name = "gguf", "model.gguf"
    options: tuple[str, ...] = ("tokenizer_pre", "split_size")

    def check(self, source: Checkpoint, tokenizer_pre: str | None) -> None:
        from exporter.gguf.metadata import check_gguf_source

        check_gguf_source(source, tokenizer_pre)

    def beyond(self, template: str) -> list[str]:
        return []

    def check_output(self, path: Path, force: bool) -> None:
        from exporter.gguf.file import check_gguf_output

        check_gguf_output(path, force)

    def files(self, store: QuantizedStore, out: Path, **options: Any) -> list[Path]:  # noqa: ANN401
        from exporter.gguf.file import gguf_files

        return gguf_files(store, out, **options)

    def size(self, store: QuantizedStore, **options: Any) -> int:  # noqa: ANN401
        from exporter.gguf.file import gguf_size

        return gguf_size(store, **options)

    def write(self, store: QuantizedStore, out: Path, **options: Any) -> Path:  # noqa: ANN401
        from exporter.gguf.file import write_gguf

        return write_gguf(store, out, **options)


class _Onnx:
    word, file_name = "onnx", "onnx"
    options: tuple[str, ...] = ("accuracy_level", "context", "split_size", "onnx_dtype")

    def check(self, source: Checkpoint, tokenizer_pre: str | None) -> None:
        from exporter.onnx.genai_tokenizer import genai_tokenizer_files
        from exporter.onnx.preflight import check_onnx

        check_onnx(source.config, source.assets(), str(source.path))
        genai_tokenizer_files(source.assets(), source.config.vocab_size, str(source.path))

    def beyond(self, template: str) -> list[str]:
        from exporter.onnx.genai_template import beyond_genai

        return beyond_genai(template)

    def check_output(self, path: Path, force: bool) -> None:
        from exporter.onnx.file import check_onnx_output

        check_onnx_output(path, force)

    def files(self, store: QuantizedStore, out: Path, **options: Any) -> list[Path]:  # noqa: ANN401
        self.size(store, **options)  # which refuses what no file holds
        return [out]

    def size(self, store: QuantizedStore, **options: Any) -> int:  # noqa: ANN401
        from exporter.onnx.file import onnx_size

        return onnx_size(store, **options)

    def write(self, store: QuantizedStore, out: Path, **options: Any) -> Path:  # noqa: ANN401
        from exporter.onnx.file import write_onnx

        return write_onnx(store, out, **options)


WRITERS: dict[str, Writer] = {writer.word: writer for writer in (_Gguf(), _Onnx())}


def writer_of(target: str) -> Writer:
    """That of a key of TARGETS."""
    return WRITERS[TARGETS[target].writer]


def source_notes(source: Checkpoint, target: str) -> list[str]:
    """What is left out, or will be wrong in the target's runtime, one line each; generation itself works."""
    rows = source.config.vocab_size
    strange = ids_without_rows(source.assets(), rows, source.path)
    ids = [f"{source.path}: {', '.join(strange[:3])}: left out, the embedding has {rows} rows"] if strange else []
    return _rounded_notes(source) + ids + _template_notes(source, writer_of(target))


def _rounded_notes(source: Checkpoint) -> list[str]:
    """Of a source that is quantized itself: what it lost is lost, and no measure against it shows that."""
    rounded = Counter[str]()
    for spec in source.specs.values():
        if spec.dtype not in FLOATS:
            rounded[spec.dtype] += spec.size
    if not rounded:
        return []
    kinds = [kind for kind, _ in rounded.most_common()]
    share = rounded.total() / sum(spec.size for spec in source.specs.values())
    return [
        f"{source.path}: {100 * share:.0f} % of its weights are quantized already ({', '.join(kinds)}); what is lost now is lost "
        "on top of that, and is measured against it: start from the original where there is one"
    ]


def _template_notes(source: Checkpoint, writer: Writer) -> list[str]:
    from exporter.onnx.genai_template import unreadable

    template = chat_templates(source.assets(), source.path).get(DEFAULT)
    if template is None:
        return []
    problem = unreadable(template)
    if problem:
        return [f"{source.path}: its chat template cannot be read ({problem}); the file holds it as it is"]
    found = writer.beyond(template)
    return [f"{source.path}: its chat template needs {', '.join(found)}, which onnxruntime-genai cannot render"] if found else []
