"""Progress bars on long work: to the terminal only, and none once ``silence`` was called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
_shown: list[bool] = [True]


def silence() -> None:
    """No bars from now on (--quiet)."""
    _shown[0] = False


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """The items, with a bar on stderr where that is a terminal."""
    bar: Iterable[T] = tqdm(items, description, total=total, disable=None if _shown[0] else True, leave=False)
    return bar
