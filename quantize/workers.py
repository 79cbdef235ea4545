"""Work on all cores, and what they share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import Generic, TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")


_here = threading.local()  # busy: one of several that compute already


def threads() -> int:
    """How many may compute at once: all cores, or one where it is one of several already."""
    return 1 if getattr(_here, "busy", False) else os.cpu_count() or 1


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``function`` of each item, in order; the first are begun first. Each has one thread of BLAS."""

    def one(item: T) -> R:
        _here.busy = True
        return function(item)

    if threads() == 1:
        return [function(item) for item in items]
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(one, items))


class Once(Generic[T]):
    """A value that is made when it is first asked for, by whichever thread, and kept."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._made, self._lock = make, list[T](), Lock()

    @property
    def value(self) -> T:
        """Made by now."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
        return self._made[0]


@contextmanager
def borrowed(idle: SimpleQueue[T]) -> Iterator[T]:
    """One of those that nobody uses, waited for, and given back at the end of the block."""
    one = idle.get()
    try:
        yield one
    finally:
        idle.put(one)


def memory_within(most: int | None = None) -> int:
    """Bytes that may be taken: of this machine, and no more than ``most``."""
    there = physical_memory()
    return there if most is None else min(most, there)


def physical_memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
