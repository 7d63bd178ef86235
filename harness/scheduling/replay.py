"""Replay: adversarial images found under one steering, tried on the other steerings of the same model.

After the search, what fooled one steering is replayed on all others, by forward passes alone. A steering whose own
attacks failed on an image, but which an image found under another steering fools, was not robust there: its attacks
were weak. Only surviving images can still change a score, so only these are replayed.

With `Task.replay_first`, what fooled the baseline is also replayed on a steering before it is attacked: an image that
this fools costs a forward pass instead of an attack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from harness.api.work import Cell, Outcome, Task
from harness.scheduling.trials import REPLAY, TrialChain

if TYPE_CHECKING:
    from harness.scheduling.state import RunProgress


@dataclass(frozen=True)
class Replay:
    """Replay on the surviving images of one finished chain: a chain of a single stage.

    Args:
        cell: names its sources; their adversarial images are still in the ledger.
    """

    cell: Cell

    @property
    def task(self) -> Task:
        """See `harness.scheduling.state.Chain`."""
        return self.cell.task

    @property
    def stages(self) -> tuple[str, ...]:
        """See `harness.scheduling.state.Chain`."""
        return (REPLAY,)

    @property
    def follows(self) -> None:
        """See `harness.scheduling.state.Chain`."""

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """See `harness.scheduling.state.Chain`."""
        return None if done else self.cell


def replays(progress: RunProgress[TrialChain]) -> dict[int, Replay]:
    """Return the replays to run once the search is over, by the number of the chain; pruned steerings have none."""
    pruned = {
        (chain.task.label, chain.steering) for number, chain in enumerate(progress.chains) if progress.next(number)
    }
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, chain in enumerate(progress.chains):
        steered = (
            chain.task.threat.reduction == "worst" and not chain.steering.method
        )  # another method has other weights
        if steered and chain.task.label not in progress.failures:
            groups[chain.task.label, chain.shard.sha256].append(number)
    found = {}
    for group in groups.values():
        fooled = {
            number: fooled_images(progress.done[number], progress.chains[number].shard.images) for number in group
        }
        for number in group:
            chain = progress.chains[number]
            surviving = chain.surviving(progress.values(number))
            sources = [key for other in group if other != number for key in replay_sources(fooled[other], surviving)]
            if sources and (chain.task.label, chain.steering) not in pruned:
                found[number] = Replay(
                    Cell(chain.task, chain.steering, chain.shard, REPLAY, surviving, sources=tuple(sources))
                )
    return found


def fooled_images(done: Sequence[Outcome], images: Sequence[int]) -> dict[str, set[int]]:
    """Return the images that each attack of a chain fooled, by the outcome's key; the clean stage is no attack.

    Args:
        done: outcomes of the finished stages, the clean one first.
        images: image numbers of the shard.
    """
    return {
        after.key: {image for image, a, b in zip(images, before.values, after.values, strict=True) if a > b}
        for before, after in pairwise(done)
    }


def replay_sources(fooled: Mapping[str, set[int]], surviving: Sequence[int]) -> list[str]:
    """Return the keys of the outcomes that hold an adversarial image made from one of ``surviving``.

    Args:
        fooled: images that each attack fooled, by the outcome's key.
        surviving: images still to be fooled.
    """
    return [key for key, images in fooled.items() if images.intersection(surviving)]
