"""Batches and groups of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Yield consecutive tuples of ``size`` items, the last one possibly shorter."""
    remaining = iter(items)
    while batch := tuple(islice(remaining, size)):
        yield batch


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return the items by their key, keys and items in the order in which they come."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found
