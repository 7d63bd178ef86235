"""Compute the cells that are missing: from lanes to outcomes, through an executor and into the ledger."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from harness.api.executor import Executor
from harness.api.work import Cell, Outcome, Task
from harness.engine.ledger import Ledger
from harness.errors import HarnessError, LedgerError, ModelError
from harness.scheduling.best_first import Race
from harness.scheduling.replay import packed
from harness.scheduling.trials import Lane


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


class Agenda(Protocol):
    """What is to be computed, and in which order."""

    def pick(self, flying: Collection[int]) -> int | None:
        """The lane whose next cell to compute, none of ``flying``; None when there is nothing more to start now."""

    def over(self) -> bool:
        """Whether nothing is asked for any more, in flight or not."""

    def remaining(self) -> Counter[str]:
        """How many cells are still to come, by stage, as far as can be told."""


class Everything(Generic[T]):
    """Every lane to its end, one after the other."""

    def __init__(self, state: State[T]) -> None:
        self.state = state
        self.open = deque(range(len(state.lanes)))

    def pick(self, flying: Collection[int]) -> int | None:
        """See `Agenda`."""
        state = self.state
        idle = (number for number in self.open if number not in flying and state.next(number))
        return next(filter(state.ready, idle), None)

    def over(self) -> bool:
        """See `Agenda`."""
        while self.open and not self.state.next(self.open[0]):
            self.open.popleft()
        return not self.open

    def remaining(self) -> Counter[str]:
        """See `Agenda`; at most so many, since a lane may end early."""
        state = self.state
        return Counter(
            stage
            for number in self.open
            if state.next(number)
            for stage in state.lanes[number].stages[len(state.done[number]) :]
        )


class Races:
    """What the race of each model asks for; and where workers are idle, what it will ask for if nothing falls.

    Args:
        state: of all lanes.
        races: by the model's label.
    """

    def __init__(self, state: State[Lane], races: Mapping[str, Race]) -> None:
        self.state = state
        self.races = races

    def pick(self, flying: Collection[int]) -> int | None:
        """See `Agenda`."""
        undecided = [race for race in self._running() if self._follow(race) is not None]
        for patient in (True, False):
            for race in undecided:
                if (number := self._ahead(race, flying, patient)) is not None:
                    return number
        return None

    def over(self) -> bool:
        """See `Agenda`."""
        return all(self._follow(race) is None for race in self._running())

    def remaining(self) -> Counter[str]:
        """See `Agenda`; as many as it takes if nothing falls any more, and more if the leaders fall back."""
        return sum((self._to_come(race) for race in self._running()), Counter())

    def forget_what_nobody_asked_for(self) -> None:
        """Leave in the state what the races asked for: it is the same whatever else was computed, by whom or when."""
        for race in self.races.values():
            for number, done in race.done.items():
                del self.state.done[number][len(done) :]

    def _running(self) -> list[Race]:
        return [race for label, race in self.races.items() if label not in self.state.failures]

    def _follow(self, race: Race) -> int | None:
        """Tell a race what is known, until it asks for what is not."""
        while (number := race.next()) is not None and len(race.done[number]) < len(self.state.done[number]):
            race.advance(number, self.state.done[number][len(race.done[number])].values)
        return number

    def _ahead(self, race: Race, flying: Collection[int], patient: bool) -> int | None:
        """The next lane that is not flying, if nothing falls; an impatient one would finish more than the winners."""
        race = race.copy()
        hoped: set[int] = set(flying)
        while (number := self._follow(race)) is not None or not (patient or race.top >= len(race.open)):
            if number is None:
                race.top += 1
            elif number in hoped or not self.state.ready(number):
                race.advance(number, race.hopeful(number))
            else:
                return number
        return None

    def _to_come(self, race: Race) -> Counter[str]:
        race = race.copy()
        stages: Counter[str] = Counter()
        while (number := self._follow(race)) is not None:
            stages[race.lanes[number].stages[len(race.done[number])]] += 1
            race.advance(number, race.hopeful(number))
        return stages


class Observer(Protocol):
    """Told of what happens, for a progress display."""

    def started(self, agenda: Agenda, known: int, slots: int) -> None:
        """The cells are about to be computed, ``slots`` at a time; ``known`` were before."""

    def advanced(self, agenda: Agenda, cell: Cell, outcome: Outcome) -> None:
        """``cell`` is done and in the ledger."""

    def failed(self, label: str, error: ModelError) -> None:
        """The model ``label`` cannot be scored; the others go on."""


@dataclass
class Crew:
    """Who computes cells, where the outcomes go, and who is told.

    Args:
        executor: has been entered.
        flying: the cells that are being computed, each with the state that wants it and the number of its lane.
    """

    executor: Executor
    ledger: Ledger
    observer: Observer
    flying: dict[Future[Outcome], tuple[object, int, Cell]] = field(default_factory=dict)

    def compute(self, state: State[T], agenda: Agenda) -> None:
        """Compute every cell that ``agenda`` asks for.

        Each outcome is in the ledger before the next is looked at, so nothing computed is lost. What was begun in the
        hope that it would be asked for, and was not, goes on flying.
        """
        if not agenda.over():
            self.observer.started(agenda, sum(map(len, state.done)), self.executor.slots)
        while not agenda.over():
            while len(self.flying) < self.executor.slots:
                number = agenda.pick({number for origin, number, _ in self.flying.values() if origin is state})
                if number is None:
                    break
                cell = state.next(number)
                assert cell is not None
                self.flying[self.executor.submit(packed(cell, state, number, self.ledger))] = (state, number, cell)
            for future in wait(self.flying, return_when=FIRST_COMPLETED).done:
                origin, number, cell = self.flying.pop(future)
                if origin is not state:  # of an earlier agenda, which did not ask for it in the end
                    if future.exception() is None:
                        self.ledger.append(cell, future.result())
                    continue
                outcome = _land(future, cell, state, self.observer)
                if outcome is not None:
                    self.ledger.append(cell, outcome)
                    state.done[number].append(outcome)
                    self.observer.advanced(agenda, cell, outcome)


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
