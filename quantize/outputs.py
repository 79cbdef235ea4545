"""Outputs appear whole: they are written under a hidden name beside their own, which they take at the end."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from quantize.errors import OutputError


class Unfinished:
    """An empty file or folder ``path`` under a name beside ``out`` that nobody had; a context manager.

    If the block ends without ``finish``, it is removed with all that was made for it. Raises OutputError.
    """

    def __init__(self, out: Path, folder: bool) -> None:
        self.out, self._folder = out, folder
        whole = Path(os.path.abspath(out))  # noqa: PTH100 - "." and ".." have no name to stand beside
        self.path = whole.with_name(f".{whole.name}.{secrets.token_hex(4)}")
        self._made = [parent for parent in whole.parents if not parent.exists()]

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir() if self._folder else self.path.touch(exist_ok=False)
        except OSError as error:
            self._clean()
            raise self._refusal(error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Raises OutputError in place of an OSError that came from writing here."""
        self._clean()
        if isinstance(error, OSError) and (error.filename is None or str(error.filename).startswith(str(self.path))):
            raise self._refusal(error) from error

    def finish(self) -> None:
        """Give the file or folder its name; what had it is replaced."""
        old = self.path.with_name(self.path.name + ".old")
        if self.out.is_dir():
            self.out.rename(old)
        self.path.replace(self.out)
        self._made.clear()
        shutil.rmtree(old, ignore_errors=True)

    def _clean(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        for parent in self._made:
            with suppress(OSError):
                parent.rmdir()

    def _refusal(self, error: OSError) -> OutputError:
        mend = "free some space" if error.errno == errno.ENOSPC else "choose a place that can be written to"
        return OutputError(f"{self.out}: cannot be written ({error.strerror or error}); {mend}")


@contextmanager
def new_file(out: Path, force: bool = False) -> Iterator[BinaryIO]:
    """A file that is named ``out`` when the block ends well.

    Raises OutputError if ``out`` is there (without ``force``) or cannot be written.
    """
    check_file(out, force)
    with Unfinished(out, folder=False) as unfinished:
        with unfinished.path.open("wb") as file:
            yield file
        unfinished.finish()


def check_file(out: Path, force: bool) -> None:
    """Raises OutputError if a new file must not take the place of ``out``."""
    if out.is_dir():
        raise OutputError(f"{out}: is a folder; name a file")
    if out.exists() and not force:
        raise OutputError(f"{out}: exists already; name another --out or pass --force")


def check_folder(out: Path, force: bool, foreign: Callable[[Path], str | None]) -> None:
    """Raises OutputError if a new folder must not take the place of ``out``: only an empty or one of ours is replaced.

    ``foreign`` says for a folder why it is none of ours, or returns None.
    """
    if not out.exists():
        return
    if not force:
        raise OutputError(f"{out}: exists already; name another --out or pass --force")
    if not out.is_dir():
        raise OutputError(f"{out}: is a file, which --force does not replace with a folder; name another --out")
    reason = foreign(out) if any(out.iterdir()) else None
    if reason is not None:
        raise OutputError(f"{out}: {reason}, so --force does not replace it; name another --out")
