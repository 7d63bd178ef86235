"""Packed results: many trials of one steering in a few bytes each.

A pack is a table of fixed-width records and, after it, the rankings of those that have one. Its bytes are transposed,
the first byte of every record first, and compressed: most columns hardly vary within a pack.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

RECORD = np.dtype(
    [
        ("image", "<u4"),
        ("attempt", "<u4"),
        ("value", "<f4"),
        ("margin", "<f4"),
        ("ranks", "<u4"),  # length of the ranking
        ("forwards", "<u4"),
        ("backwards", "<u4"),
        ("seconds", "<f4"),
        ("offset", "<i8"),  # of the adversarial image in its file; -1: none
        ("bytes", "<u4"),  # of the adversarial image
        ("checksum", "<u8"),  # of the adversarial image
    ]
)
RANK = np.dtype("<i4")


def pack(records: np.ndarray, rankings: Iterable[Sequence[int]]) -> bytes:
    """Pack results.

    Args:
        records: `RECORD` [n].
        rankings: their rankings, in the same order, each as long as its ``ranks`` says.
    """
    columns = records.view(np.uint8).reshape(len(records), RECORD.itemsize).T
    return zlib.compress(columns.tobytes() + np.fromiter(chain.from_iterable(rankings), RANK).tobytes())


def unpack(packs: Iterable[tuple[int, bytes]]) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Unpack results.

    Args:
        packs: the number of results in each pack, and the pack.

    Returns:
        ``RECORD [n]`` and n rankings, of all packs one after another.

    Raises:
        ValueError, zlib.error: a pack is damaged.
    """
    rows, ranks = [np.empty((0, RECORD.itemsize), np.uint8)], [np.empty(0, RANK)]
    for size, packed in packs:
        content = zlib.decompress(packed)
        columns = np.frombuffer(content, np.uint8, size * RECORD.itemsize)
        rows.append(columns.reshape(RECORD.itemsize, size).T)
        if columns.size < len(content):
            ranks.append(np.frombuffer(content, RANK, offset=columns.size))
    records = np.ascontiguousarray(np.concatenate(rows)).view(RECORD).reshape(-1)
    return records, _cut(np.concatenate(ranks), records["ranks"])


def _cut(ranks: np.ndarray, lengths: np.ndarray) -> list[tuple[int, ...]]:
    """Return the rankings of so many classes each, which lie one after another."""
    rankings: list[tuple[int, ...]] = [()] * len(lengths)
    (places,) = np.nonzero(lengths)
    ends = np.cumsum(lengths[places], dtype=np.int64).tolist()
    every = ranks.tolist()
    for place, start, end in zip(places.tolist(), [0, *ends], ends, strict=False):
        rankings[place] = tuple(every[start:end])
    return rankings
