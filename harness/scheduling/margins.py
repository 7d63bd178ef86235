"""The most fragile images first: cut the data by how surely the untouched network classifies them. Pure.

Whether a steering loses is decided by a few images, those with a small margin. Put into the first shards, they let a
search give up a loser before the others are attacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.api.records import BASELINE
from harness.api.work import Cell, Shard, Task
from harness.scheduling.trials import MARGIN, shards


@dataclass(frozen=True)
class Margins:
    """The margins of one shard. Runs like a lane of one stage."""

    task: Task
    shard: Shard

    @property
    def stages(self) -> tuple[str, ...]:
        """The one."""
        return (MARGIN,)

    @property
    def follows(self) -> None:
        """No other."""

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """The cell, until it is done."""
        return None if done else Cell(self.task, BASELINE, self.shard, MARGIN, self.shard.images)


def margins(task: Task, digests: Mapping[int, str], batch_size: int) -> list[Margins]:
    """All of one model's, the images in the order of the data."""
    return [Margins(task, shard) for shard in shards(digests, batch_size)]


def smallest_margin_first(digests: Mapping[int, str], found: Iterable[np.ndarray]) -> dict[int, str]:
    """``digests`` in the order of the margins, smallest first; equal ones in the order of the data.

    Args:
        digests: a hash for each image's number.
        found: the margins, in the order of ``digests``, [n] in all.
    """
    images = list(digests)
    order = np.argsort(np.concatenate(list(found)), kind="stable")
    return {images[position]: digests[images[position]] for position in order}
