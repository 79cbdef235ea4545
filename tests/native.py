"""What `make native` and `make apps` built. Tests of it are skipped where it was not built, and under CI that is a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def built(path: str) -> Path:
    """A file, by its path from the root."""
    found = ROOT / path
    if not found.is_file():
        pytest.skip(
            f"{path} is not there; `make native apps` builds it where what that needs is "
            "(docs/reference/custom-op.md, docs/guides/web.md)"
        )
    return found


def library() -> Path:
    """The library of this machine, where exporter.custom_op_path() finds it."""
    return built("exporter/custom_op/libadadim_ort.so")
