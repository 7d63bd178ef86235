"""Cross-β replay: adversarial images found under one steering, shown to every other steering of the same model.

A steering whose own attack left an image standing, but which an image found under another steering fools, was not
robust there: its attack was weak. Only such images can change a score, so only they are shown, forward passes alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.execute import State
from harness.ledger import Ledger, read_adversaries
from harness.plan import REPLAY, Lane
from harness.types import Adversaries, Cell, Task


@dataclass(frozen=True)
class Replay:
    """What is shown to one lane, once the search is over. Runs like a lane of one stage.

    Args:
        cell: without the images.
        files: where they lie.
    """

    cell: Cell
    files: tuple[Path, ...]

    @property
    def task(self) -> Task:
        """The model's."""
        return self.cell.task

    @property
    def stages(self) -> tuple[str, ...]:
        """The one."""
        return (REPLAY,)

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """The cell, until it is done."""
        return None if done else self.cell

    def packed(self, cell: Cell) -> Cell:
        """The cell with its images, read from the ledger just before it is sent to a worker."""
        standing = set(cell.standing)
        images: list[Tensor] = []
        indices: list[int] = []
        for file in self.files:
            found = read_adversaries(file)
            wanted = [position for position, image in enumerate(found.indices) if image in standing]
            images.append(found.images[wanted])
            indices.extend(found.indices[position] for position in wanted)
        return replace(cell, shown=Adversaries(torch.cat(images), tuple(indices)))


def replays(state: State[Lane], ledger: Ledger) -> dict[int, Replay]:
    """What is to be shown to which lane, by its number, once the search is over: to steerings that were finished."""
    given_up = {(lane.task.label, lane.steering) for number, lane in enumerate(state.lanes) if state.next(number)}
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, lane in enumerate(state.lanes):
        if lane.task.threat.reduction == "worst" and lane.task.label not in state.failures:
            groups[lane.task.label, lane.shard.sha256].append(number)
    found = {
        number: _replay(state, ledger, number, [other for other in group if other != number])
        for group in groups.values()
        for number in group
        if (state.lanes[number].task.label, state.lanes[number].steering) not in given_up
    }
    return {number: replay for number, replay in found.items() if replay is not None}


def _replay(state: State[Lane], ledger: Ledger, number: int, others: Sequence[int]) -> Replay | None:
    lane = state.lanes[number]
    standing = set(lane.standing(state.values(number)))
    sources = [
        (outcome.key, ledger.adversaries(outcome.key))
        for other in others
        for outcome in state.done[other][1:]  # the clean stage finds no images
        if standing & set(_lost_at(state, other, outcome.key))
    ]
    if not sources:
        return None
    keys, files = zip(*sources, strict=True)
    ordered = tuple(image for image in lane.shard.images if image in standing)
    return Replay(Cell(lane.task, lane.steering, lane.shard, REPLAY, ordered, sources=keys), files)


def _lost_at(state: State[Lane], number: int, key: str) -> list[int]:
    """The images that a lane lost in the stage whose outcome is ``key``."""
    lane, outcomes = state.lanes[number], state.done[number]
    position = next(k for k, outcome in enumerate(outcomes) if outcome.key == key)
    before, after = outcomes[position - 1].values, outcomes[position].values
    return [image for image, a, b in zip(lane.shard.images, before, after, strict=True) if a > b]
