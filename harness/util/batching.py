"""Batches of a sequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice


def batched(images: Iterable[int], size: int) -> Iterator[tuple[int, ...]]:
    """Yield consecutive tuples of ``size`` images, the last one possibly shorter."""
    remaining = iter(images)
    while batch := tuple(islice(remaining, size)):
        yield batch
