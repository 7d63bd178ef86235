"""Adversarial images found under one steering, shown to other steerings of the same model.

After the search, what fooled any steering is shown to all others. One whose own attack left an image standing, but
which an image found under another steering fools, was not robust there: its attack was weak. Only such images can
change a score, so only they are shown, forward passes alone.

Before the attacks, where `Task.replay_first` asks for it, a steering is shown what fooled the untouched network: a
forward pass instead of an attack on each image that falls.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from harness.api.work import Cell, Outcome, Task
from harness.engine.ledger import Ledger
from harness.scheduling.trials import REPLAY, TrialChain

if TYPE_CHECKING:
    from harness.scheduling.state import RunProgress


@dataclass(frozen=True)
class Replay:
    """What is shown to one lane, once the search is over. Runs like a lane of one stage.

    Args:
        cell: without the images.
    """

    cell: Cell

    @property
    def task(self) -> Task:
        """The model's."""
        return self.cell.task

    @property
    def stages(self) -> tuple[str, ...]:
        """The one."""
        return (REPLAY,)

    @property
    def follows(self) -> None:
        """No other: all attacks are over."""

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """The cell, until it is done."""
        return None if done else self.cell


def replays(state: RunProgress[TrialChain], ledger: Ledger) -> dict[int, Replay]:
    """What is to be shown to which lane, by its number, once the search is over: to steerings that were finished."""
    pruned = {(chain.task.label, chain.steering) for number, chain in enumerate(state.chains) if state.next(number)}
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, chain in enumerate(state.chains):
        steered = chain.task.threat.reduction == "worst" and not chain.steering.method  # others have other weights
        if steered and chain.task.label not in state.failures:
            groups[chain.task.label, chain.shard.sha256].append(number)
    found = {}
    for group in groups.values():
        fooled = {number: fooled_by(state.done[number], state.chains[number].shard.images) for number in group}
        for number in group:
            chain = state.chains[number]
            surviving = chain.surviving(state.values(number))
            keys = [key for other in group if other != number for key in outcomes_with(fooled[other], surviving)]
            if keys and (chain.task.label, chain.steering) not in pruned:
                found[number] = Replay(
                    Cell(chain.task, chain.steering, chain.shard, REPLAY, surviving, sources=tuple(keys))
                )
    return found


def fooled_by(done: Sequence[Outcome], images: Sequence[int]) -> dict[str, set[int]]:
    """Which images each attack of a lane fooled, by the outcome's key; the clean stage is no attack."""
    return {
        after.key: {image for image, a, b in zip(images, before.values, after.values, strict=True) if a > b}
        for before, after in pairwise(done)
    }


def outcomes_with(fooled: Mapping[str, set[int]], surviving: Sequence[int]) -> list[str]:
    """The outcomes that hold an adversarial image made from one of ``surviving``."""
    return [key for key, images in fooled.items() if images.intersection(surviving)]
