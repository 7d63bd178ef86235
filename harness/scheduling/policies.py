"""What is to be computed, and in which order: everything, or what a best-first search asks for. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping
from typing import Generic, Protocol

from harness.scheduling.best_first import Race
from harness.scheduling.state import State, T
from harness.scheduling.trials import Lane


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
