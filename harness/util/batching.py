"""Cut a sequence into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice


def batched(images: Iterable[int], size: int) -> Iterator[tuple[int, ...]]:
    """Consecutive tuples of ``size``, the last one shorter."""
    rest = iter(images)
    while part := tuple(islice(rest, size)):
        yield part
