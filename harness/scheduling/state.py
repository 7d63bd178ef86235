"""How far each chain of cells has come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from harness.api.work import Cell, Outcome, Task
from harness.engine.ledger import Ledger
from harness.errors import ModelError


class Chain(Protocol):
    """Cells that follow one another; see `harness.scheduling.trials.TrialChain`."""

    @property
    def task(self) -> Task:
        """The model's."""

    @property
    def stages(self) -> tuple[str, ...]:
        """At most these, in order."""

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """The cell after those that gave ``done``."""

    @property
    def follows(self) -> Chain | None:
        """Another one that must be finished before this one goes on."""


T = TypeVar("T", bound=Chain)


class RunProgress(Generic[T]):
    """How far each lane has come.

    Args:
        chains: all of them, in the order in which they should be computed.
        ledger: what it holds is taken as done.
    """

    def __init__(self, chains: Sequence[T], ledger: Ledger) -> None:
        self.chains = chains
        self.done: list[list[Outcome]] = [[] for _ in chains]
        self.failures: dict[str, ModelError] = {}
        numbers: dict[object, int] = {chain: number for number, chain in enumerate(chains)}
        self.followed = {number: numbers[chain.follows] for number, chain in enumerate(chains) if chain.follows}
        for number in range(len(chains)):
            while (cell := self.next(number)) and (outcome := ledger.get(cell.key)):
                self.done[number].append(outcome)

    def next(self, number: int) -> Cell | None:
        """The next cell of a lane; None when it is finished or its model has failed."""
        chain = self.chains[number]
        if chain.task.label in self.failures:
            return None
        return chain.next(self.values(number))

    def ready(self, number: int) -> bool:
        """Whether a lane can go on now: not before the one that it follows is finished."""
        return number not in self.followed or self.next(self.followed[number]) is None

    def of(self, label: str) -> dict[int, T]:
        """The lanes of one model, by number."""
        return {number: chain for number, chain in enumerate(self.chains) if chain.task.label == label}

    def values(self, number: int) -> list[np.ndarray]:
        """What the finished stages of a lane gave, [n] each."""
        return [outcome.values for outcome in self.done[number]]
