"""What is to be computed, and in which order: everything, or what a best-first search asks for. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping
from typing import Generic, Protocol

from harness.scheduling.best_first import BestFirstSearch
from harness.scheduling.state import RunProgress, T
from harness.scheduling.trials import TrialChain


class SchedulingPolicy(Protocol):
    """What is to be computed, and in which order."""

    def next_ready(self, in_flight: Collection[int]) -> int | None:
        """The lane whose next cell to compute, none of ``in_flight``; None when there is nothing more to start now."""

    def is_done(self) -> bool:
        """Whether nothing is asked for any more, in flight or not."""

    def remaining(self) -> Counter[str]:
        """How many cells are still to come, by stage, as far as can be told."""


class FullGridPolicy(Generic[T]):
    """Every lane to its end, one after the other."""

    def __init__(self, state: RunProgress[T]) -> None:
        self.state = state
        self.open = deque(range(len(state.chains)))

    def next_ready(self, in_flight: Collection[int]) -> int | None:
        """See `SchedulingPolicy`."""
        state = self.state
        idle = (number for number in self.open if number not in in_flight and state.next(number))
        return next(filter(state.ready, idle), None)

    def is_done(self) -> bool:
        """See `SchedulingPolicy`."""
        while self.open and not self.state.next(self.open[0]):
            self.open.popleft()
        return not self.open

    def remaining(self) -> Counter[str]:
        """See `SchedulingPolicy`; at most so many, since a lane may end early."""
        state = self.state
        return Counter(
            stage
            for number in self.open
            if state.next(number)
            for stage in state.chains[number].stages[len(state.done[number]) :]
        )


class BestFirstPolicy:
    """What the race of each model asks for; and where workers are idle, what it will ask for if nothing falls.

    Args:
        state: of all lanes.
        searches: by the model's label.
    """

    def __init__(self, state: RunProgress[TrialChain], searches: Mapping[str, BestFirstSearch]) -> None:
        self.state = state
        self.searches = searches

    def next_ready(self, in_flight: Collection[int]) -> int | None:
        """See `SchedulingPolicy`."""
        undecided = [search for search in self._running() if self._catch_up(search) is not None]
        for patient in (True, False):
            for search in undecided:
                if (number := self._look_ahead(search, in_flight, patient)) is not None:
                    return number
        return None

    def is_done(self) -> bool:
        """See `SchedulingPolicy`."""
        return all(self._catch_up(search) is None for search in self._running())

    def remaining(self) -> Counter[str]:
        """See `SchedulingPolicy`; as many as it takes if nothing falls any more, and more if the leaders fall back."""
        return sum((self._remaining(search) for search in self._running()), Counter())

    def discard_unasked(self) -> None:
        """Leave in the state what the races asked for: it is the same whatever else was computed, by whom or when."""
        for search in self.searches.values():
            for number, done in search.done.items():
                del self.state.done[number][len(done) :]

    def _running(self) -> list[BestFirstSearch]:
        return [search for label, search in self.searches.items() if label not in self.state.failures]

    def _catch_up(self, search: BestFirstSearch) -> int | None:
        """Tell a race what is known, until it asks for what is not."""
        while (number := search.next()) is not None and len(search.done[number]) < len(self.state.done[number]):
            search.tell(number, self.state.done[number][len(search.done[number])].values)
        return number

    def _look_ahead(self, search: BestFirstSearch, in_flight: Collection[int], patient: bool) -> int | None:
        """The next lane that is not flying, if nothing falls; an impatient one would finish more than the winners."""
        search = search.copy()
        hoped: set[int] = set(in_flight)
        while (number := self._catch_up(search)) is not None or not (patient or search.top >= len(search.open)):
            if number is None:
                search.top += 1
            elif number in hoped or not self.state.ready(number):
                search.tell(number, search.if_none_fooled(number))
            else:
                return number
        return None

    def _remaining(self, search: BestFirstSearch) -> Counter[str]:
        search = search.copy()
        stages: Counter[str] = Counter()
        while (number := self._catch_up(search)) is not None:
            stages[search.chains[number].stages[len(search.done[number])]] += 1
            search.tell(number, search.if_none_fooled(number))
        return stages
