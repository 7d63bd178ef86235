"""Progress of a run: the outcomes known so far, chain by chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from harness.api.work import Cell, Outcome, Task
from harness.errors import ModelError


class Chain(Protocol):
    """Cells that follow one another, such as `harness.scheduling.trials.TrialChain`."""

    @property
    def task(self) -> Task:
        """Task of the model that is scored."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages of the cells, in order; a chain may end before the last."""

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """Return the cell that comes after the outcomes ``done``, [n] each; None when the chain is finished."""

    @property
    def follows(self) -> Chain | None:
        """Chain that must be finished before this one can go on; None if there is none."""


T = TypeVar("T", bound=Chain)


class RunProgress(Generic[T]):
    """Outcomes known so far. A chain is referred to by its number, its position in ``chains``.

    Args:
        chains: all chains, in the order in which they should be computed.
        known: looks up the outcome of a cell that was computed before by its key; None if there is none.
        failures: errors of the models that have failed, by label; shared by the parts of a run, and added to.
    """

    def __init__(
        self,
        chains: Sequence[T],
        known: Callable[[str], Outcome | None],
        failures: dict[str, ModelError] | None = None,
    ) -> None:
        self.chains = chains
        self.done: list[list[Outcome]] = [[] for _ in chains]
        self.failures: dict[str, ModelError] = {} if failures is None else failures
        numbers: dict[object, int] = {chain: number for number, chain in enumerate(chains)}
        self.followed = {number: numbers[chain.follows] for number, chain in enumerate(chains) if chain.follows}
        for number in range(len(chains)):
            while (cell := self.next(number)) and (outcome := known(cell.key)):
                self.done[number].append(outcome)

    def next(self, number: int) -> Cell | None:
        """Return the next cell of a chain; None when the chain is finished or its model has failed."""
        chain = self.chains[number]
        if chain.task.label in self.failures:
            return None
        return chain.next(self.values(number))

    def ready(self, number: int) -> bool:
        """Return whether a chain can go on now: the chain that it follows, if any, is finished."""
        return number not in self.followed or self.next(self.followed[number]) is None

    def of(self, label: str) -> dict[int, T]:
        """Return the chains of one model, by number."""
        return {number: chain for number, chain in enumerate(self.chains) if chain.task.label == label}

    def values(self, number: int) -> list[np.ndarray]:
        """Return the outcomes of a chain's finished stages, in order, [n] each."""
        return [outcome.values for outcome in self.done[number]]
