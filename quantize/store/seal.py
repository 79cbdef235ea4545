"""Digests that a file holds of itself and of what lies beside it.

A seal is 64 digits among the very bytes that it covers: their sha256, taken with these digits as zeros. As its length is
known, so is the file's size before there is a digest. It finds every accident, but not somebody who changes a file and its
seal with it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from quantize.gguf.container import map_file

OPEN = "0" * 64  # where the digits will stand


def closed(data: bytes, before: bytes) -> bytes:
    """``data`` with its digest in place of the last OPEN that stands right behind ``before``."""
    head, found, tail = data.rpartition(before + OPEN.encode())
    assert found, f"no open seal behind {before!r}"
    return head + before + hashlib.sha256(data).hexdigest().encode() + tail


def holds(data: bytes, digits: str) -> bool:
    """Whether ``digits``, found in ``data``, are its seal."""
    return hashlib.sha256(data.replace(digits.encode(), OPEN.encode())).hexdigest() == digits


def close_file(path: Path, before: bytes) -> None:
    """``closed``, of the first OPEN behind ``before`` in a file of any size, changed where it lies. Raises OSError."""
    found = _place(map_file(path), before)
    assert found is not None, f"no open seal behind {before!r}"
    place, digits = found
    with path.open("r+b") as file:
        file.seek(place)
        file.write(digits)


def file_holds(path: Path, before: bytes) -> bool:
    """Whether a file is what ``close_file`` left of it. Raises OSError, and ValueError for an empty one."""
    data = map_file(path)
    found = _place(data, before)
    return found is not None and data[found[0] : found[0] + len(OPEN)] == found[1]


def _place(data: memoryview, before: bytes) -> tuple[int, bytes] | None:
    """Where the digits stand, and what they have to be."""
    found = re.search(re.escape(before), data)
    if found is None:
        return None
    digest = hashlib.sha256(data[: found.end()])
    digest.update(OPEN.encode())
    digest.update(data[found.end() + len(OPEN) :])
    return found.end(), digest.hexdigest().encode()
