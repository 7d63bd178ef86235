"""How far each chain of cells has come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from harness.api.work import Cell, Outcome, Task
from harness.engine.ledger import Ledger
from harness.errors import ModelError


class Track(Protocol):
    """Cells that follow one another; see `harness.scheduling.trials.Lane`."""

    @property
    def task(self) -> Task:
        """The model's."""

    @property
    def stages(self) -> tuple[str, ...]:
        """At most these, in order."""

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """The cell after those that gave ``done``."""

    @property
    def follows(self) -> Track | None:
        """Another one that must be finished before this one goes on."""


T = TypeVar("T", bound=Track)


class State(Generic[T]):
    """How far each lane has come.

    Args:
        lanes: all of them, in the order in which they should be computed.
        ledger: what it holds is taken as done.
    """

    def __init__(self, lanes: Sequence[T], ledger: Ledger) -> None:
        self.lanes = lanes
        self.done: list[list[Outcome]] = [[] for _ in lanes]
        self.failures: dict[str, ModelError] = {}
        numbers: dict[object, int] = {lane: number for number, lane in enumerate(lanes)}
        self.followed = {number: numbers[lane.follows] for number, lane in enumerate(lanes) if lane.follows}
        for number in range(len(lanes)):
            while (cell := self.next(number)) and (outcome := ledger.get(cell.key)):
                self.done[number].append(outcome)

    def next(self, number: int) -> Cell | None:
        """The next cell of a lane; None when it is finished or its model has failed."""
        lane = self.lanes[number]
        if lane.task.label in self.failures:
            return None
        return lane.next(self.values(number))

    def ready(self, number: int) -> bool:
        """Whether a lane can go on now: not before the one that it follows is finished."""
        return number not in self.followed or self.next(self.followed[number]) is None

    def of(self, label: str) -> dict[int, T]:
        """The lanes of one model, by number."""
        return {number: lane for number, lane in enumerate(self.lanes) if lane.task.label == label}

    def values(self, number: int) -> list[np.ndarray]:
        """What the finished stages of a lane gave, [n] each."""
        return [outcome.values for outcome in self.done[number]]
