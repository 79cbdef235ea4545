"""Where an output is written before it takes its name: hidden names beside it, one run at a time, and what a killed run left.

::

    .NAME.TOKEN.adadim       what is being written, or what it has just taken the place of
    .NAME.TOKEN.adadim.old   the latter, for a moment, where a file system cannot exchange two names
    .NAME.adadim-lock        the first's name; locked by the run that writes, for as long as its process lives

Only a name that stands in a lock which nobody holds is ever removed as a dead run's. TOKEN is random, or says what is
made: then a run that makes the same goes on with what a dead one left.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from quantize.errors import OutputError

try:
    import fcntl
except ImportError:  # no such locks there: nothing is refused as busy, and nothing is known of the dead
    fcntl = None  # type: ignore[assignment]

NOREPLACE, EXCHANGE = 1, 2  # of renameat2(2)
AT_FDCWD = -100
NO_SUCH_CALL = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
LONGEST = 200  # bytes of a name that leave room for what is put around it
DESCRIPTOR = re.compile(r"(/proc/\d+|/dev)/fd/(\d+)")
NOTED = re.compile(r"\.[^/\0]+\.[0-9a-f]{8}\.adadim")
MOST_LINKS = 40
PARTS = "parts"  # in an unfinished folder: what is whole of it, so that somebody may go on with it


def place_of(out: Path) -> Path:
    """Where ``out`` is written: a symbolic link is followed, so that it stays one and its disk is the right one."""
    return Path(os.path.realpath(out))


def hidden_name(target: Path, key: str = "") -> Path:
    """A name beside ``target`` that nobody has, or only who makes the same: ``key`` is of hex digits."""
    return target.with_name(f"{_stem(target)}.{key[:8] or secrets.token_hex(4)}.adadim")


def free_space(out: Path) -> int:
    """Bytes that are free where ``out`` is, or will be."""
    target = place_of(out)
    return shutil.disk_usage(next(folder for folder in (target, *target.parents) if folder.is_dir())).free


def descriptor_of(out: Path) -> int | None:
    """N for /dev/stdout, /dev/fd/N and links to them, whatever is open there: it is written to, not replaced."""
    path = Path(os.path.abspath(out))  # noqa: PTH100 - links are followed one by one
    for _ in range(MOST_LINKS):
        found = DESCRIPTOR.fullmatch(str(Path(os.path.realpath(path.parent)) / path.name))
        if found is not None:
            return int(found[2]) if found[1] in ("/dev", f"/proc/{os.getpid()}") else None
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


class Lock:
    """Held from ``take`` to ``release``, or to the end of the process; knows what its run has not finished."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self.path = target.with_name(f"{_stem(target)}.adadim-lock")
        self._file: int | None = None
        self._left = False  # what a dead run left is there still

    def take(self, unfinished: str) -> bool:
        """Lock the output and note that ``unfinished``, a name beside it, is ours; clears what a dead run left under another one.

        False where there are no locks. Raises OutputError if another run holds it, OSError where nothing can be written.
        """
        if fcntl is None or not self._locked(os.O_CREAT, unfinished):
            return False
        assert self._file is not None
        os.pwrite(self._file, unfinished.encode("utf-8", "surrogateescape"), 0)
        return True

    def clear(self) -> None:
        """Remove what a dead run left, but for what may be gone on with. Raises OutputError if a run is alive, OSError."""
        if fcntl is not None and os.path.lexists(self.path):
            with suppress(FileNotFoundError):
                self._locked(0)
            self.release()

    def release(self, left: bool = False) -> None:
        """Twice does no harm. ``left``: the next one to take it finds what it notes."""
        if self._file is not None:
            if not (left or self._left):
                with suppress(OSError):
                    self.path.unlink()
            os.close(self._file)
            self._file = None

    def _locked(self, create: int, ours: str = "") -> bool:
        """Whether the lock is held now; False where there are no locks, as on some network file systems."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | create, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(file):
                    self._clear_dead(file, ours)
                    self._file = file
                    return True
            except BlockingIOError as error:
                raise OutputError(f"{self._target}: another adadim is writing it; wait for its end, or name another") from error
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                self.path.unlink()
                return False
            finally:
                if self._file is None:
                    os.close(file)

    def _is_current(self, file: int) -> bool:
        """A lock that was released before we got it is no longer the one of that name."""
        try:
            return os.path.samestat(os.fstat(file), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def _clear_dead(self, file: int, ours: str) -> None:
        noted = os.pread(file, 4096, 0).decode("utf-8", "surrogateescape")
        if noted and not (NOTED.fullmatch(noted) and noted.startswith(_stem(self._target) + ".")):
            raise OutputError(f"{self.path}: is no lock of ours, but has the name of one; remove it, or name another output")
        if not noted:
            return
        left = self._target.with_name(noted)
        self._left = not ours and (left / PARTS).is_dir()
        if self._left or noted == ours:
            return
        aside = left.with_name(left.name + ".old")
        if os.path.lexists(aside) and not os.path.lexists(self._target):
            aside.rename(self._target)  # it was about to be replaced, and is the only one that there is
        for path in (left, aside):
            remove(path)
        os.ftruncate(file, 0)


def remove(path: Path) -> None:
    """A file or a folder, if it is there and can be removed."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def rename_new(source: Path, target: Path) -> None:
    """Give a file or folder a name that nobody has. Raises FileExistsError if somebody has it, OSError."""
    if _renameat2(source, target, NOREPLACE):
        return
    if os.name == "nt":  # refuses a name that is taken by itself
        source.rename(target)
    elif source.is_dir():
        target.mkdir()
        try:
            source.rename(target)  # takes the place of an empty folder only
        except OSError:
            with suppress(OSError):
                target.rmdir()
            raise
    else:
        _link_new(source, target)


def _link_new(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
        source.unlink()
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        source.rename(target)


def exchange(one: Path, other: Path) -> None:
    """Two files or folders take each other's names. Raises OSError."""
    if _renameat2(one, other, EXCHANGE):
        return
    aside = one.with_name(one.name + ".old")
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Whether the system and the file system know the call. Raises OSError as rename does."""
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), ctypes.c_uint(flag)) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_SUCH_CALL:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


def _stem(target: Path) -> str:
    """A dot and the name, or of a very long name what it begins with and a digest."""
    name = target.name
    if len(os.fsencode(name)) > LONGEST:
        name = f"{name[: LONGEST // 4 - 16]}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return f".{name}"
