"""Code of others that may abort, overflow its stack, take for ever or all memory runs in a child process: what ends it does not
end us, and what it prints is not printed.

A child is a Python of ours that is asked over a socket, one call after the other. It starts with the first call and again with
the first one after its end. Between the two processes, which trust each other, go pickles; nothing from outside is unpickled.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from quantize.errors import AdaDimError, shown
from quantize.telemetry import OFF

T = TypeVar("T")
GIB = 1 << 30
LAST_WORDS = 4096  # bytes of what a child printed that are searched for what it complained of
COMPLAINTS = ("ASSERT", "rror", "abort", "panicked", "terminate", "allocation")
QUIET = OFF | {"GGML_NO_BACKTRACE": "1", "RUST_BACKTRACE": "0"}
MAIN = "import sys; sys.path[:] = {path!r}; from quantize.child import serve; serve({fd})"


@dataclass(frozen=True)
class Limits:
    """``seconds`` of one call and ``memory`` bytes of data that the child may have; None: as much as it takes."""

    seconds: float | None = None
    memory: int | None = None


class ChildEnded(Exception):
    """A call did not come back: the reason as a clause, "took more than 10 s" or "was ended by SIGABRT (GGML_ASSERT ...)"."""


class Child:
    """One process that runs functions of ours, and may hold an object between them. Use as a context manager, or ``close``."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, function: Callable[..., T], *args: Any) -> T:  # noqa: ANN401
        """``function(*args)`` in the child; all are importable and small. Raises what it raises, and ChildEnded."""
        answer: T = self._ask((function, args, False))
        return answer

    def hold(self, function: Callable[..., object], *args: Any) -> None:  # noqa: ANN401
        """As ``call``, but the result stays in the child, for ``ask``; what was held before is let go."""
        self._ask((function, args, True))

    def ask(self, method: str, *args: Any) -> Any:  # noqa: ANN401
        """A method of what is held, or an attribute if it is none. Raises as ``call``."""
        return self._ask((method, args, False))

    def close(self) -> None:
        """End the process; twice does no harm."""
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.wait()
            self._said.close()
            self._process = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: tuple[object, tuple[Any, ...], bool]) -> Any:  # noqa: ANN401
        if self._process is None:
            self._start()
        try:
            self._connection.send((question, self._limits.memory, Path.cwd()))
            if not self._connection.poll(self._limits.seconds):
                self.close()
                raise ChildEnded(f"took more than {self._limits.seconds:g} s")
            good, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ChildEnded(self._why()) from error
        if good:
            return answer
        if isinstance(answer, MemoryError):
            self.close()
            raise ChildEnded("needs more memory than it may have")
        raise answer

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        # The last: an editable install is found by a hook, which is there in its virtual environment alone.
        path = [*(entry or str(Path.cwd()) for entry in sys.path), str(Path(__file__).parent.parent)]
        main = MAIN.format(path=path, fd=theirs.fileno())
        self._process = subprocess.Popen(
            [_python(), "-c", main],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            pass_fds=[theirs.fileno()],
            env={**os.environ, **QUIET},
        )
        theirs.close()
        atexit.register(self.close)
        with suppress(EOFError):  # what ended it is said by the first question
            self._connection.recv()  # it is there: only now the time of a call begins

    def _why(self) -> str:
        """How the process ended, and what it complained of."""
        assert self._process is not None
        self._connection.close()
        code = self._process.wait()
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - LAST_WORDS))
        lines = self._said.read().decode("utf-8", "replace").splitlines()
        words = next((line for line in lines if any(word in line for word in COMPLAINTS)), "")
        self.close()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return how + (f" ({shown(words)})" if words else "")


def _python() -> str:
    """This interpreter, also where it lies in a folder that this user may not enter, as another user's home."""
    itself = "/proc/self/exe"
    return sys.executable if os.access(sys.executable, os.X_OK) or not Path(itself).exists() else itself


def serve(fd: int) -> None:
    """The child's side: answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    connection, held = Connection(fd), None
    connection.send(None)
    with suppress(EOFError):
        while True:
            (what, args, keep), memory, folder = connection.recv()
            _limit(memory)
            os.chdir(folder)  # the parent may have gone elsewhere since
            try:
                result = _result(held, what, args)
                held, result = (result, None) if keep else (held, result)
                answer = pickle.dumps((True, result))
            except BaseException as error:  # pyo3's PanicException is no Exception
                answer = _failure(error)
            connection.send_bytes(answer)


def _result(held: object, what: Callable[..., object] | str, args: tuple[Any, ...]) -> object:
    if not isinstance(what, str):
        return what(*args)
    found = getattr(held, what)
    return found(*args) if callable(found) else found


def _failure(error: BaseException) -> bytes:
    """Errors of ours, and those that callers tell apart, as they are; others by their text, since not all can be pickled."""
    if isinstance(error, MemoryError):  # numpy has one of its own
        return pickle.dumps((False, MemoryError(str(error))))
    plain = isinstance(error, AdaDimError | OSError | ImportError | ValueError | KeyError | RecursionError)
    if plain and type(error).__module__.split(".")[0] in ("builtins", "quantize", "exporter", "runtime_checks"):
        with suppress(Exception):
            return pickle.dumps((False, error))
    import traceback

    trace = "".join(traceback.format_exception(error))
    return pickle.dumps((False, RuntimeError(f"in the child: {trace}")))


def _limit(memory: int | None) -> None:
    """RLIMIT_DATA: what is allocated counts, mapped files do not."""
    with suppress(ImportError, ValueError, OSError):  # where the system has no such limit
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY if memory is None else memory, hard))


def _end_with(parent: int) -> None:
    """A killed parent cannot end its child, which may be computing for hours."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
