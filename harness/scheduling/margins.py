"""Smallest margin first: attack the images that the baseline classifies least surely before the others. Pure.

Steerings differ mostly on images with a small margin. With these in the first shards, a search can prune a losing
steering before it attacks the rest.
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
    """The baseline's margins on one shard: a chain of a single stage."""

    task: Task
    shard: Shard

    @property
    def stages(self) -> tuple[str, ...]:
        """See `harness.scheduling.state.Chain`."""
        return (MARGIN,)

    @property
    def follows(self) -> None:
        """See `harness.scheduling.state.Chain`."""

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """See `harness.scheduling.state.Chain`."""
        return None if done else Cell(self.task, BASELINE, self.shard, MARGIN, self.shard.images)


def margin_chains(task: Task, digests: Mapping[int, str], batch_size: int) -> list[Margins]:
    """Return the chains that measure one model's margins, images in the order of ``digests``."""
    return [Margins(task, shard) for shard in shards(digests, batch_size)]


def smallest_margin_first(digests: Mapping[int, str], by_shard: Iterable[np.ndarray]) -> dict[int, str]:
    """Return ``digests`` with the smallest margin first; ties keep their order.

    Args:
        digests: a hash of each image, by image number.
        by_shard: margins of the images, shard after shard in the order of ``digests``, [n] in all.
    """
    images = list(digests)
    order = np.argsort(np.concatenate(list(by_shard)), kind="stable")
    return {images[position]: digests[images[position]] for position in order}
