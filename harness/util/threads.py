"""Threads for work that waits for files or leaves the interpreter's lock alone, such as decoding pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST_READERS = 8
"""Threads of a process that read images at once, at most."""


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def readers() -> int:
    """Return the number of threads that read images at once: one for each available core, within reason."""
    return min(available_cores(), MOST_READERS)


def in_threads(function: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """Return what ``function`` makes of each item, in the order of the items.

    Args:
        function: the function; several threads call it at once.
        items: its arguments.
        threads: number of threads; with fewer than two, this thread does all.

    Raises:
        Exception: the error of the first item that has one, as if they were taken one after the other.
    """
    waiting = list(items)
    threads = min(threads, len(waiting))
    if threads < 2:
        return [function(item) for item in waiting]
    with ThreadPoolExecutor(threads, "reader") as pool:
        return list(pool.map(function, waiting))


def ahead(items: Iterable[T], read: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """Yield each item with what ``read`` makes of it, while a thread reads the next one.

    An error of ``read`` is raised when its item is due. The thread has ended when the iterator has, or is closed.

    Args:
        items: what to read, in this order.
        read: reads one item; never called twice at once.
    """
    with ThreadPoolExecutor(1, "ahead") as thread:
        reading = ((item, thread.submit(read, item)) for item in items)
        due = next(reading, None)
        while due is not None:
            item, future = due
            found = future.result()
            due = next(reading, None)
            yield item, found
