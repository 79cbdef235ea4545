"""Outputs appear whole: they are written under a hidden name beside their own, which they take at the end.

What had the name at the end is looked at again: without ``force`` a name is only taken if nobody has it, with ``force`` only
from what had it at the start, or from what is ours. What cannot take its name is kept under another one.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, BinaryIO, Self, cast

from quantize.errors import OutputError, asked
from quantize.store.output_place import Lock, descriptor_of, exchange, hidden_name, place_of, remove, rename_new

Foreign = Callable[[Path], str | None]
MEANWHILE = "was put there while this was made"
GOES_ON = "the same command goes on from here; what is whole lies beside the output, in a hidden folder .NAME.*.adadim"
EXISTS = f"exists already; name another {asked('out')} or pass {asked('force', True)}"


@dataclass(frozen=True)
class Rule:
    """What an output may take the place of. ``foreign`` says why what lies at a path is none of ours, or returns None.

    A folder is replaced with ``force`` if it is empty or ours; a file with ``force``, or, if ``foreign`` is given, if it is ours.
    """

    folder: bool
    force: bool
    foreign: Foreign | None = None

    def refusal(self, path: Path) -> str | None:
        """Why what lies at ``path`` is not to be replaced, and what to do; None if it may be."""
        if self.folder:
            if not self.force:
                return EXISTS
            if not path.is_dir():
                return f"is a file, which {asked('force')} does not replace with a folder; name another {asked('out')}"
            reason = self.stranger(path)
            return None if reason is None else f"{reason}, so {asked('force')} does not replace it; name another {asked('out')}"
        if path.is_dir():
            return "is a folder; name a file"
        if self.force:
            return None
        if self.foreign is None:
            return EXISTS
        reason = self.stranger(path)
        return None if reason is None else f"{reason}; name another file or pass {asked('force', True)}"

    def stranger(self, path: Path) -> str | None:
        """Why it is none of ours."""
        if self.foreign is None:
            return "is none of ours"
        if self.folder and path.is_dir() and not any(path.iterdir()):
            return None
        return self.foreign(path)


class Unfinished:
    """A file or folder ``path`` under a hidden name beside ``out``, empty but for what is gone on with; a context manager.

    ``key``: digits of what is made; a run that makes the same goes on with what an interrupted one left (``resumable``). Else, if
    the block ends without ``finish``, it is removed with all that was made for it. Raises OutputError for what must not be
    replaced (``Rule``), for an output that another run is writing, and for a place that cannot be written to.
    """

    def __init__(self, out: Path, folder: bool, force: bool = False, foreign: Foreign | None = None, key: str = "") -> None:
        self.out, self._rule, self.key = out, Rule(folder, force, foreign), key
        self.resumable = False  # whether there is something to go on with
        self._target = place_of(out)
        self.path = hidden_name(self._target, key)
        self._lock = Lock(self._target)
        self._made = [parent for parent in self._target.parents if not parent.exists()]
        self._was: tuple[int, int] | None = None
        self._ours = False  # whether ``path`` is to be removed

    def __enter__(self) -> Self:
        try:
            self._check_home()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._lock.take(self.path.name):
                self.key, self.path = "", hidden_name(self._target)  # nobody knows who else writes there
            _check(self.out, self._target, self._rule)
            self._was, self._ours = _identity(self._target), True
            self.path.mkdir(exist_ok=bool(self.key)) if self._rule.folder else self.path.touch(exist_ok=False)
        except OSError as error:
            self._clean()
            raise self._failure(error) from error
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Raises OutputError in place of an OSError that came from writing here."""
        if self.resumable and kind is not None and not issubclass(kind, Exception):  # interrupted, or told to end
            self._lock.release(left=True)
            assert error is not None
            error.add_note(GOES_ON)
            return
        self._clean()
        if isinstance(error, OSError) and (error.filename is None or str(error.filename).startswith(str(self.path))):
            raise self._failure(error) from error

    def finish(self) -> None:
        """Give the file or folder its name. Raises OutputError if it cannot have it, and says where it is kept instead."""
        reason = self.take_name()
        if reason is not None:
            raise OutputError(f"{self.out}: {reason}; it is left alone, and what was made is kept as {self._keep()}")
        self._made.clear()

    def take_name(self) -> str | None:
        """The same, but says why it cannot have its name, and keeps nothing. Raises OutputError where nothing can be renamed."""
        try:
            return self._take_name()
        except OSError as error:
            raise self._failure(error) from error

    def give_back(self) -> None:
        """Undo ``take_name``: what it took the place of has its name again. Raises OSError."""
        if os.path.lexists(self.path):
            exchange(self.path, self._target)
        else:
            self._target.rename(self.path)

    def _take_name(self) -> str | None:
        """Why not. What is replaced lies at ``path`` afterwards, to be removed."""
        if not os.path.lexists(self._target):
            with suppress(FileExistsError):
                rename_new(self.path, self._target)
                return None
        reason = self._late_refusal(self._target)
        if reason is not None:
            return reason
        exchange(self.path, self._target)
        reason = self._late_refusal(self.path)  # which may have come after the first look
        if reason is not None:
            exchange(self.path, self._target)
        return reason

    def _late_refusal(self, path: Path) -> str | None:
        if path.is_symlink() or self._rule.refusal(path) is not None:
            return self._was_there(path)
        if _identity(path) != self._was and self._rule.stranger(path) is not None:
            return MEANWHILE
        return None

    def _was_there(self, path: Path) -> str:
        """Of what must be left alone."""
        changed = self._rule.refusal(path) if _identity(path) == self._was else None
        return MEANWHILE if changed is None else f"changed while this was made, and now {changed.partition(';')[0]}"

    def _keep(self) -> Path:
        """Under the first free name like its own, for it may have taken hours."""
        for number in count(2):
            suffix = "" if self._rule.folder else self._target.suffix
            kept = self._target.with_name(f"{self._target.name.removesuffix(suffix)}.{number}{suffix}")
            with suppress(FileExistsError):
                rename_new(self.path, kept)
                self._made.clear()
                return kept
        raise AssertionError

    def _check_home(self) -> None:
        if "~" in (path.name for path in self._made) or (self._target.name == "~" and not self._target.exists()):
            raise OutputError(f"{self.out}: would be in a new folder named ~, or be one; write out the home folder's path")

    def _clean(self) -> None:
        if self._ours:
            remove(self.path)
        self._lock.release()
        for parent in self._made:
            with suppress(OSError):
                parent.rmdir()

    def _failure(self, error: OSError) -> OutputError:
        mend = "free some space" if error.errno == errno.ENOSPC else "choose a place that can be written to"
        return OutputError(f"{self.out}: cannot be written ({error.strerror or error}); {mend}")


@contextmanager
def new_file(out: Path, force: bool = False, foreign: Foreign | None = None) -> Iterator[BinaryIO]:
    """A file that is named ``out`` when the block ends well; a pipe or a device is written to then, whole.

    Raises OutputError if what is there must not be replaced (``Rule``), or ``out`` cannot be written.
    """
    check_file(out, force, foreign)
    if is_stream(out):
        with TemporaryFile() as file:
            yield cast(BinaryIO, file)
            _pour(file, out)
        return
    with Unfinished(out, False, force, foreign) as unfinished:
        with unfinished.path.open("wb") as file:
            yield file
        unfinished.finish()


def check_file(out: Path, force: bool, foreign: Foreign | None = None) -> None:
    """Raises OutputError if a new file must not take the place of ``out``; removes what a killed run left beside it."""
    if not is_stream(out):
        _check_output(out, Rule(False, force, foreign))


def check_folder(out: Path, force: bool, foreign: Foreign) -> None:
    """Raises OutputError if a new folder must not take the place of ``out``: only an empty or one of ours is replaced.

    ``foreign`` says for a folder why it is none of ours, or returns None. Removes what a killed run left beside it.
    """
    _check_output(out, Rule(True, force, foreign))


def _check_output(out: Path, rule: Rule) -> None:
    target = place_of(out)
    if target.name:
        with suppress(OSError):  # where nothing can be removed, nothing can be written either, which is said later
            Lock(target).clear()
    _check(out, target, rule)


def _check(out: Path, target: Path, rule: Rule) -> None:
    try:
        reason = rule.refusal(target) if os.path.lexists(target) else None
    except OSError as error:
        raise OutputError(f"{out}: cannot be looked at ({error.strerror or error}); name another place") from error
    if reason is not None:
        raise OutputError(f"{out}: {reason}")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_stream(out: Path) -> bool:
    """Whether bytes go through ``out`` to somebody. Raises OutputError for a disk, a socket, and what may not be written to."""
    try:
        mode = out.stat().st_mode
    except OSError:
        return False
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise OutputError(f"{out}: is a {'disk' if stat.S_ISBLK(mode) else 'socket'}; name a file")
    stream = stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or descriptor_of(out) is not None
    if stream and not os.access(out, os.W_OK):
        raise OutputError(f"{out}: cannot be written (Permission denied); choose a place that can be written to")
    return stream


def _pour(file: IO[bytes], out: Path) -> None:
    descriptor = descriptor_of(out)
    if descriptor == 1 and sys.stdout is not None:
        sys.stdout.flush()
    file.seek(0)
    try:
        # Of a descriptor of ours a copy, for what is open there may be a file in which more is to follow.
        opened = os.open(out, os.O_WRONLY | os.O_APPEND) if descriptor is None else os.dup(descriptor)
        with os.fdopen(opened, "wb") as stream:
            shutil.copyfileobj(file, stream)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
