"""Runtimes run in a child process: a file that makes one of them abort costs its own answer, not the command."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from quantize.checkpoint import Checkpoint
from quantize.checkpoint.template import Template
from quantize.child import GIB, Child, ChildEnded, Limits
from quantize.errors import FileFormatError
from quantize.types import F32, I64
from runtime_checks.runtimes.exported import exported_runner
from runtime_checks.runtimes.runners import Runner, TorchRunner

# Of all checks of a file's tokenizer and templates in its runtime, which a hostile one could keep busy for ever.
TEXT_LIMITS = Limits(seconds=120, memory=4 * GIB)


class IsolatedRunner:
    """A file in its own runtime, in a process of its own (``Runner``). What ends the process is a FileFormatError."""

    def __init__(self, path: Path, context: int, runner: Callable[[Path, int], Runner] = exported_runner) -> None:
        """Raises FileFormatError where there is no runtime, or it refuses the file or ends with it."""
        self._path, self._child = path, Child()
        try:
            self._ask(self._child.hold, runner, path, context)
            self.name = str(self._ask(self._child.ask, "name"))
        except BaseException:
            self._child.close()
            raise

    def logits(self, tokens: I64, skip: int = 0) -> F32:
        """See Runner."""
        out: F32 = self._ask(self._child.ask, "logits", tokens, skip)
        return out

    def greedy(self, tokens: I64, count: int) -> list[int]:
        """See Runner."""
        out: list[int] = self._ask(self._child.ask, "greedy", tokens, count)
        return out

    def speed(self, count: int) -> float:
        """See Runner."""
        return float(self._ask(self._child.ask, "speed", count))

    def close(self) -> None:
        """See Runner."""
        self._child.close()

    def _ask(self, way: Callable[..., Any], *question: object) -> Any:  # noqa: ANN401
        try:
            return way(*question)
        except ChildEnded as error:
            raise FileFormatError(f"{self._path}: its runtime {error}; export it again, or use another file") from error


def source_runner(source: Checkpoint, context: int) -> Runner:
    """The source itself: in torch in float32, or of a template, in its own runtime. Raises FileFormatError."""
    if isinstance(source, Template):
        return IsolatedRunner(source.path, context)
    from quantize.source import build_model

    return TorchRunner(build_model(source.config, source.read, source.tied), "torch")


def isolated_runner(path: Path, context: int) -> Runner:
    """``exported_runner`` in a child. Raises as it does, and FileFormatError if the child ends."""
    return IsolatedRunner(path, context)


@cache
def checking_children(lane: int = 0) -> tuple[Child, Child]:
    """For each file that is checked at the same time one for texts and templates, limited, and one for all else; they are kept,
    as starting them takes longer than many a check."""
    return Child(TEXT_LIMITS), Child()
