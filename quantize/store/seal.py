"""Digests that a file holds of itself and of what lies beside it.

A seal is 64 digits among the very bytes that it covers: their sha256, taken with these digits as zeros. As its length is
known, so is the file's size before there is a digest. It finds every accident, but not somebody who changes a file and its
seal with it.
"""

from __future__ import annotations

import hashlib

OPEN = "0" * 64  # where the digits will stand


def closed(data: bytes, before: bytes) -> bytes:
    """``data`` with its digest in place of the last OPEN that stands right behind ``before``."""
    head, found, tail = data.rpartition(before + OPEN.encode())
    assert found, f"no open seal behind {before!r}"
    return head + before + hashlib.sha256(data).hexdigest().encode() + tail


def holds(data: bytes, digits: str) -> bool:
    """Whether ``digits``, found in ``data``, are its seal."""
    return hashlib.sha256(data.replace(digits.encode(), OPEN.encode())).hexdigest() == digits
