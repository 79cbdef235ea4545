"""Paths for libraries that take UTF-8 alone, where file systems hold any bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def native_path(path: Path) -> Iterator[str]:
    """``path`` as text that is UTF-8: of a name that is none, a link to it, for as long as the block takes."""
    if not any("\ud800" <= char <= "\udfff" for char in str(path)):
        yield str(path)
        return
    with TemporaryDirectory(prefix="adadim-path-") as folder:
        link = Path(folder) / "model"
        link.symlink_to(path.absolute())
        yield str(link)
