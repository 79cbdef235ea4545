"""Work on all cores. What makes many short calls of numpy goes to child processes: threads would wait for the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from typing import TypeVar

from threadpoolctl import threadpool_limits

from quantize.child import Child

T = TypeVar("T")
R = TypeVar("R")
_child = False


def threads() -> int:
    """How many may compute at once in this process: all cores, or one in a child, beside which there are others."""
    return 1 if _child else os.cpu_count() or 1


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``function`` of each item, in order."""
    with ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(function, items))


def in_children(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The same in child processes, one for each core, with one thread of BLAS each; items and results are copied.

    ``function`` is importable. The first items are begun first. Raises what it raises, and ChildEnded.
    """
    idle = _children()

    def one(item: T) -> R:
        with borrowed(idle) as child:
            found: R = child.call(_alone, function, item)
            return found

    return in_threads(one, items)


@contextmanager
def borrowed(idle: SimpleQueue[T]) -> Iterator[T]:
    """One of those that nobody uses, waited for, and given back at the end of the block."""
    one = idle.get()
    try:
        yield one
    finally:
        idle.put(one)


@cache
def _children() -> SimpleQueue[Child]:
    """Those that nobody uses; they are kept, as starting one takes half a second."""
    idle = SimpleQueue[Child]()
    for _ in range(threads()):
        idle.put(Child())
    return idle


def _alone(function: Callable[[T], R], item: T) -> R:
    global _child
    _child = True
    with threadpool_limits(limits=1, user_api="blas"):
        return function(item)
