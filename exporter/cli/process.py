"""``adadim`` as a process among others: what it says on whatever stdout is, signals that end it, and libraries that talk."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

from exporter.cli.doctor import EXTRAS
from exporter.cli.spelling import as_option
from quantize.errors import AdaDimError, printable, spelling

ENDING = ("SIGTERM", "SIGHUP")
SILENT = {"TRANSFORMERS_VERBOSITY": "error", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "PYTHONWARNINGS": "ignore"}
_full = list[OSError]()  # why stdout takes no more


class Terminated(BaseException):
    """A signal asked the process to end; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def prepare_streams() -> None:
    """What no stream can spell is escaped. Files must not get the numbers of closed ones, for libraries write to those."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _full.clear()


def quiet_libraries() -> None:
    """Their warnings are not for people who use the command; ours are errors, or lines of a summary."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        for name, value in SILENT.items():
            os.environ.setdefault(name, value)


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """In the block a signal that would end the process at once raises Terminated, so that all is cleaned up as for an error."""
    before = {}
    for number in [getattr(signal, name) for name in ENDING if hasattr(signal, name)]:
        with suppress(ValueError):  # not the main thread
            if signal.getsignal(number) is signal.SIG_DFL:  # under nohup it is ignored, and stays so
                before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough; cleaning up is not to be cut short
    raise Terminated(number)


def warn(notes: Iterable[str]) -> None:
    """A line on stderr for each."""
    for note in notes:
        print(f"adadim: warning: {printable(note)}", file=sys.stderr)


def say(text: str, end: str = "\n") -> None:
    """Print to stdout. Whoever does not listen to the end stops no work; a full disk is said by ``finished``."""
    if sys.stdout is None or _full:
        return
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        _full.append(error)
        _drop(sys.stdout)


def complain(message: str) -> None:
    """One line on stderr, if there is anybody to read it."""
    if sys.stderr is None:
        return
    try:
        print(printable(message), file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)


def guarded(command: Callable[[Namespace], int], args: Namespace) -> int:
    """The exit code of a command; what is the user's to mend is one line."""
    try:
        with ending_cleanly(), spelling(as_option):
            return command(args)
    except AdaDimError as error:
        return _fail(error.told(as_option))
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        return _fail(f"{package} is not installed; pip install 'adadim-edge[{EXTRAS[package]}]'")
    except OSError as error:
        where = error.filename or getattr(args, "out", None) or getattr(args, "json", None) or args.command
        return _fail(f"{where}: {error.strerror or error}; check the path, its permissions and the free space")
    except MemoryError:
        return _fail("there is not enough memory; free some, or take a machine that has more")
    except KeyboardInterrupt as stopped:
        complain(_with_notes("adadim: interrupted", stopped))
        return 130
    except Terminated as signalled:
        complain(_with_notes("adadim: terminated", signalled))
        return 128 + signalled.number


def _with_notes(word: str, error: BaseException) -> str:
    """What an output that is not finished has to say once, however many there are."""
    return "; ".join([word, *dict.fromkeys(getattr(error, "__notes__", []))])


def finished(code: int) -> int:
    """The exit code, once all that was said has gone out, or could not. Whoever closed a pipe is content with what there was."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _full.append(error)
        _drop(sys.stdout)
    if not _full or isinstance(_full[0], BrokenPipeError):
        return code
    failed = _fail(f"standard output: cannot be written ({_full[0].strerror or _full[0]}); the rest is done")
    return code or failed


def _fail(message: str) -> int:
    complain(f"adadim: error: {message}")
    return 2


def _drop(stream: TextIO) -> None:
    """What is left in its buffer goes nowhere, for the interpreter would try it again at its end and complain."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
