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
from harness.scheduling.trials import REPLAY, Lane

if TYPE_CHECKING:
    from harness.scheduling.state import State


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


def replays(state: State[Lane], ledger: Ledger) -> dict[int, Replay]:
    """What is to be shown to which lane, by its number, once the search is over: to steerings that were finished."""
    given_up = {(lane.task.label, lane.steering) for number, lane in enumerate(state.lanes) if state.next(number)}
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, lane in enumerate(state.lanes):
        steered = lane.task.threat.reduction == "worst" and not lane.steering.method  # others have other weights
        if steered and lane.task.label not in state.failures:
            groups[lane.task.label, lane.shard.sha256].append(number)
    found = {}
    for group in groups.values():
        lost = {number: _lost(state.done[number], state.lanes[number].shard.images) for number in group}
        for number in group:
            lane = state.lanes[number]
            standing = lane.standing(state.values(number))
            keys = [key for other in group if other != number for key in _fooling(lost[other], standing)]
            if keys and (lane.task.label, lane.steering) not in given_up:
                found[number] = Replay(
                    Cell(lane.task, lane.steering, lane.shard, REPLAY, standing, sources=tuple(keys))
                )
    return found


def _lost(done: Sequence[Outcome], images: Sequence[int]) -> dict[str, set[int]]:
    """Which images each attack of a lane fooled, by the outcome's key; the clean stage is no attack."""
    return {
        after.key: {image for image, a, b in zip(images, before.values, after.values, strict=True) if a > b}
        for before, after in pairwise(done)
    }


def _fooling(lost: Mapping[str, set[int]], standing: Sequence[int]) -> list[str]:
    """The outcomes that hold an adversarial image made from one of ``standing``."""
    return [key for key, images in lost.items() if images.intersection(standing)]
