"""Scheduling policies: compute every cell, or those that a best-first search asks for. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping
from typing import Generic, Protocol

from harness.scheduling.best_first import BestFirstSearch
from harness.scheduling.state import RunProgress, T
from harness.scheduling.trials import TrialChain


class SchedulingPolicy(Protocol):
    """Choice of the cells to compute, and of their order."""

    def next_ready(self, in_flight: Collection[int]) -> int | None:
        """Return the number of a chain whose next cell can start now; None when there is nothing to start.

        Args:
            in_flight: numbers of the chains whose next cell is being computed; none of them is returned.
        """

    def is_done(self) -> bool:
        """Return whether nothing more is needed, not even the cells in flight."""

    def remaining(self) -> Counter[str]:
        """Return an estimate of the number of cells still to compute, by stage."""


class FullGridPolicy(Generic[T]):
    """Compute every chain to its end, one after the other."""

    def __init__(self, progress: RunProgress[T]) -> None:
        self.progress = progress
        self.open = deque(range(len(progress.chains)))

    def next_ready(self, in_flight: Collection[int]) -> int | None:
        """See `SchedulingPolicy`."""
        progress = self.progress
        idle = (number for number in self.open if number not in in_flight and progress.next(number))
        return next(filter(progress.ready, idle), None)

    def is_done(self) -> bool:
        """See `SchedulingPolicy`."""
        while self.open and not self.progress.next(self.open[0]):
            self.open.popleft()
        return not self.open

    def remaining(self) -> Counter[str]:
        """See `SchedulingPolicy`; an upper bound, since a chain may end early."""
        progress = self.progress
        return Counter(
            stage
            for number in self.open
            if progress.next(number)
            for stage in progress.chains[number].stages[len(progress.done[number]) :]
        )


class BestFirstPolicy:
    """Compute what each model's search asks for; on idle workers, what it will ask for if no more images are fooled.

    Args:
        progress: progress of the chains of all models.
        searches: one for each model, by label.
    """

    def __init__(self, progress: RunProgress[TrialChain], searches: Mapping[str, BestFirstSearch]) -> None:
        self.progress = progress
        self.searches = searches

    def next_ready(self, in_flight: Collection[int]) -> int | None:
        """See `SchedulingPolicy`."""
        undecided = [search for search in self._running() if self._catch_up(search) is not None]
        for beyond_winners in (False, True):
            for search in undecided:
                if (number := self._look_ahead(search, in_flight, beyond_winners)) is not None:
                    return number
        return None

    def is_done(self) -> bool:
        """See `SchedulingPolicy`."""
        return all(self._catch_up(search) is None for search in self._running())

    def remaining(self) -> Counter[str]:
        """See `SchedulingPolicy`; assumes that no more images are fooled, so it grows when a leader falls back."""
        return sum((self._remaining(search) for search in self._running()), Counter())

    def discard_unasked(self) -> None:
        """Drop the outcomes that no search asked for: the rest is the same whatever else was computed meanwhile."""
        for search in self.searches.values():
            for number, done in search.done.items():
                del self.progress.done[number][len(done) :]

    def _running(self) -> list[BestFirstSearch]:
        return [search for label, search in self.searches.items() if label not in self.progress.failures]

    def _catch_up(self, search: BestFirstSearch) -> int | None:
        """Tell a search what is known, and return the first chain it asks for beyond that; None when it is done."""
        known = self.progress.done
        while (number := search.ask()) is not None and len(search.done[number]) < len(known[number]):
            search.tell(number, known[number][len(search.done[number])].values)
        return number

    def _look_ahead(self, search: BestFirstSearch, in_flight: Collection[int], beyond_winners: bool) -> int | None:
        """Return the next chain, not in flight, that a search will ask for if no more images are fooled.

        Args:
            search: the search; it is left as it is.
            in_flight: numbers of the chains to leave out.
            beyond_winners: whether to go on with the runners-up once all winners would be known.
        """
        search = search.copy()
        while (number := self._catch_up(search)) is not None or (beyond_winners and search.top < len(search.open)):
            if number is None:
                search.top += 1
            elif number in in_flight or not self.progress.ready(number):
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
