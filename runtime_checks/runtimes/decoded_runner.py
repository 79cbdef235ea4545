"""A file's decoded weights as a float file of the same runtime, for sources that torch does not run as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from quantize.types import F32, I64
from runtime_checks.runtimes.isolated import IsolatedRunner
from runtime_checks.runtimes.runners import Runner


class DecodedRunner:
    """What ``write`` makes at a path, in its runtime as exactly as it runs; it is gone with ``close``. Raises FileFormatError."""

    def __init__(self, write: Callable[[Path], None], context: int, runner: Callable[[Path, int], Runner], runtime: str) -> None:
        self.name, self._folder = f"{runtime} (decoded)", TemporaryDirectory()
        decoded = Path(self._folder.name) / "decoded"
        write(decoded)
        self._runner = IsolatedRunner(decoded, context, runner)

    def logits(self, tokens: I64, skip: int = 0) -> F32:
        """See Runner."""
        return self._runner.logits(tokens, skip)

    def greedy(self, tokens: I64, count: int) -> list[int]:
        """See Runner."""
        return self._runner.greedy(tokens, count)

    def speed(self, count: int) -> float:
        """See Runner."""
        return self._runner.speed(count)

    def close(self) -> None:
        """See Runner."""
        self._runner.close()
        self._folder.cleanup()
