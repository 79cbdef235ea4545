"""``adadim`` as a process: what ends it, errors that are not its own, and streams that are closed, full or gone."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter.cli import main as cli
from exporter.cli.main import main
from exporter.cli.process import complain, say, warn
from quantize.errors import ConfigError


@pytest.fixture
def doing(monkeypatch) -> Callable[[Callable[[], object]], int]:
    """Run ``adadim doctor`` with something else to do; its exit code."""

    def run(work: Callable[[], object]) -> int:
        def command(_: Namespace) -> int:
            work()
            return 0

        monkeypatch.setitem(cli.COMMANDS, "doctor", command)
        return main(["doctor"])

    return run


def raises(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def noted(error: BaseException, *notes: str) -> BaseException:
    for note in notes:
        error.add_note(note)
    return error


FULL = os.strerror(errno.ENOSPC)
ENDS = {
    "ours": (ConfigError("a.toml: no\x1b[31m rule\nat all"), 2, "error: a.toml: no\\x1b[31m rule at all"),
    "memory": (MemoryError(), 2, "error: there is not enough memory; free some, or take a machine that has more"),
    "a file": (
        OSError(errno.ENOSPC, FULL, "o\x1but\n.x"),
        2,
        f"error: o\\x1but .x: {FULL}; check the path, its permissions and the free space",
    ),
    "no file": (OSError(errno.ENOSPC, FULL), 2, f"error: doctor: {FULL}; check the path, its permissions and the free space"),
    "a library": (ModuleNotFoundError(name="torch.nn"), 2, "error: torch is not installed; pip install 'adadim-edge[torch]'"),
    "by hand": (KeyboardInterrupt(), 130, "interrupted"),
    "by hand, and there is more to say": (noted(KeyboardInterrupt(), "once", "twice", "once"), 130, "interrupted; once; twice"),
}


@pytest.mark.parametrize(("error", "code", "said"), ENDS.values(), ids=ENDS)
def test_what_ends_a_command_is_one_line(doing, capsys, error, code, said):
    assert doing(raises(error)) == code
    assert capsys.readouterr() == ("", f"adadim: {said}\n")


@pytest.mark.parametrize("error", [ModuleNotFoundError(name="exporter.nothing"), ZeroDivisionError()])
def test_a_bug_of_ours_is_no_line(doing, error):
    with pytest.raises(type(error)):
        doing(raises(error))


@pytest.mark.usefixtures("hangup_is_not_ignored")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_cut_cleaning_short(doing, number):
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)
            cleaned.append("all")

    assert (doing(work), cleaned) == (128 + number, ["all"])


def test_a_command_in_a_thread(doing):
    """Where no signal can be handled."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(doing(lambda: None)))
    thread.start()
    thread.join()
    assert codes == [0]


@contextmanager
def stream(name: str, where: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """stdout or stderr that nobody reads, that is full, or that is not there. Whatever is still in its buffer can be let go."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed, Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, name, {"closed": closed, "full": full, "gone": None}[where])
        yield
        monkeypatch.undo()


SAYS = {
    "we do": lambda: say("a"),
    "we do, then a library": lambda: (say("a"), print("b", flush=True)),
    "a library, which leaves it in the buffer": lambda: print("b", end=""),
    "nobody": lambda: None,
}


@pytest.mark.parametrize("where", ["closed", "full", "gone"])
@pytest.mark.parametrize("says", SAYS)
def test_stdout_that_takes_nothing(doing, capsys, monkeypatch, says, where):
    """A full disk is one line; who closed a pipe is content, and so is who has no stdout."""
    bad = where == "full" and says != "nobody"
    with stream("stdout", where, monkeypatch):
        assert doing(SAYS[says]) == (2 if bad else 0)
    line = f"adadim: error: standard output: cannot be written ({FULL}); the rest is done\n"
    assert capsys.readouterr() == ("", line if bad else "")
    assert doing(lambda: None) == 0  # it was of that command alone


@pytest.mark.parametrize(("work", "code"), [(raises(ConfigError("x")), 2), (raises(KeyboardInterrupt()), 130)])
def test_a_full_stdout_hides_no_other_end(doing, monkeypatch, work, code):
    with stream("stdout", "full", monkeypatch):
        assert doing(lambda: (say("a"), work())) == code


@pytest.mark.parametrize("where", ["closed", "full", "gone"])
def test_stderr_that_takes_nothing(doing, capsys, monkeypatch, where):
    """What cannot be said there is not said anywhere else, and changes no exit code."""
    with stream("stderr", where, monkeypatch):
        assert doing(raises(ConfigError("x"))) == 2
        complain("once more")
    assert capsys.readouterr() == ("", "")


def test_a_file_never_gets_the_number_of_a_closed_stream(doing, tmp_path):
    """Libraries write to these numbers."""
    numbers, kept = [], os.dup(0)
    os.close(0)
    try:
        assert doing(lambda: numbers.append(os.open(tmp_path / "x", os.O_CREAT))) == 0
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    os.close(numbers[0])
    assert numbers[0] > 2


def test_no_encoding_stops_a_line(doing, monkeypatch):
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, "ascii"))
    assert doing(lambda: (say("é"), warn(["ü\n\x1b"]), raises(ConfigError("日"))())) == 2
    sys.stderr.flush()
    assert out.getvalue() == b"\\xe9\n"
    assert err.getvalue() == b"adadim: warning: \\xfc \\x1b\nadadim: error: \\u65e5\n"
