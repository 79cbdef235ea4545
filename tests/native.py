"""What `make native` and `make apps` built. Tests of it are skipped where it was not built, but for CI, where it has to be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def built(path: str) -> Path:
    """A file, by its path from the root."""
    found = ROOT / path
    if not found.is_file():
        reason = f"{path} is not there; `make native apps` builds it where what that needs is (docs/custom-op.md, docs/web.md)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return found


def library() -> Path:
    """The library of this machine, where exporter.custom_op_path() finds it."""
    return built("exporter/custom_op/libadadim_ort.so")
