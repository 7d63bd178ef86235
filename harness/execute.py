"""Compute the cells that are missing: from lanes to outcomes, through an executor and into the ledger."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Generic, Protocol, TypeVar

import numpy as np

from harness.contracts import Executor
from harness.errors import HarnessError, LedgerError, ModelError
from harness.ledger import Ledger
from harness.types import Cell, Outcome, Task


class Track(Protocol):
    """Cells that follow one another; see `harness.plan.Lane`."""

    @property
    def task(self) -> Task:
        """The model's."""

    @property
    def stages(self) -> tuple[str, ...]:
        """At most these, in order."""

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """The cell after those that gave ``done``."""

    def packed(self, cell: Cell) -> Cell:
        """The cell as it is sent to a worker."""


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
        for number in range(len(lanes)):
            while (cell := self.next(number)) and (outcome := ledger.get(cell.key)):
                self.done[number].append(outcome)

    def next(self, number: int) -> Cell | None:
        """The next cell of a lane; None when it is finished or its model has failed."""
        lane = self.lanes[number]
        if lane.task.label in self.failures:
            return None
        return lane.next(self.values(number))

    def values(self, number: int) -> list[np.ndarray]:
        """What the finished stages of a lane gave, [n] each."""
        return [outcome.values for outcome in self.done[number]]

    @property
    def total(self) -> int:
        """How many cells there are at most."""
        return sum(len(lane.stages) for lane in self.lanes)

    def remaining(self) -> Counter[str]:
        """How many cells may still have to be computed, by stage."""
        return Counter(
            stage
            for number, lane in enumerate(self.lanes)
            if self.next(number)
            for stage in lane.stages[len(self.done[number]) :]
        )


class Observer(Protocol):
    """Told of what happens, for a progress display."""

    def started(self, state: State[T], slots: int) -> None:
        """The cells are about to be computed, ``slots`` at a time."""

    def advanced(self, state: State[T], cell: Cell, outcome: Outcome) -> None:
        """``cell`` is done and in the ledger."""

    def failed(self, label: str, error: ModelError) -> None:
        """The model ``label`` cannot be scored; the others go on."""


def execute(state: State[T], executor: Executor, ledger: Ledger, observer: Observer) -> None:
    """Compute every cell of ``state`` that is missing, on an executor that has been entered.

    Each outcome is in the ledger before the next is looked at, so nothing computed is lost.
    """
    waiting = deque(number for number in range(len(state.lanes)) if state.next(number))
    flying: dict[Future[Outcome], tuple[int, Cell]] = {}
    if not waiting:
        return
    observer.started(state, executor.slots)
    while waiting or flying:
        while waiting and len(flying) < executor.slots:
            number = waiting.popleft()
            if cell := state.next(number):
                flying[executor.submit(state.lanes[number].packed(cell))] = (number, cell)
        for future in wait(flying, return_when=FIRST_COMPLETED).done:
            number, cell = flying.pop(future)
            outcome = _land(future, cell, state, observer)
            if outcome is None:
                continue
            ledger.append(cell, outcome)
            state.done[number].append(outcome)
            observer.advanced(state, cell, outcome)
            if state.next(number):
                waiting.appendleft(number)  # finish a lane before the next is begun


def _land(future: Future[Outcome], cell: Cell, state: State[T], observer: Observer) -> Outcome | None:
    """The outcome, or None after noting that the model has failed."""
    try:
        return future.result()
    except LedgerError:
        raise
    except HarnessError as error:
        failure = error if isinstance(error, ModelError) else ModelError(str(error))
    except Exception as error:  # whatever a network or an attack raises in the middle of a run
        failure = ModelError(f"stage {cell.stage}: {type(error).__name__}: {error}")
    label = cell.task.label
    if label not in state.failures:
        state.failures[label] = failure
        observer.failed(label, failure)
    return None
