"""Which cell next, so that the best β is known soonest? Best-first search over the grid. Pure.

What stands after some of the stages bounds what will stand after all of them. So the winner is found without finishing
the losers: run the next cell of whichever steering has the best bound, until the one with the best bound is finished.
The winner, ties included, is that of the full grid, whatever is left unfinished; likewise that of every set of images
on which the cross-validation chooses.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from harness.analysis.selection import Scored, better
from harness.api.records import Steering
from harness.scheduling.trials import TrialChain


class BestFirstSearch:
    """One model's steerings, each with a bound that falls as its cells are done.

    Its course follows from the outcomes alone: it asks for one cell after another, and which it asks for does not
    depend on what else has been computed, by whom or when.

    Args:
        chains: of this model, by number; a steering's most fragile shard first.
        images: the numbers of all its images, in the order of the data.
        sets: positions in ``images`` that each choice of β is made on, [k] each.
        top: how many of the best on all images to finish.
        asked: steerings to finish whatever their rank, beside the baseline.
    """

    def __init__(
        self,
        chains: Mapping[int, TrialChain],
        images: Sequence[int],
        sets: Sequence[np.ndarray],
        top: int,
        asked: Collection[Steering] = (),
    ) -> None:
        self.asked = asked
        place = {image: position for position, image in enumerate(images)}
        self.chains = chains
        self.top = top
        self.sets = [np.arange(len(images)), *sets]
        self.places = {number: [place[image] for image in chain.shard.images] for number, chain in chains.items()}
        self.done: dict[int, list[np.ndarray]] = {number: [] for number in chains}
        self.open: dict[Steering, list[int]] = {}
        for number, chain in chains.items():
            self.open.setdefault(chain.steering, []).append(number)
        ones = np.ones(len(images), np.float32)
        self.bounds = {steering: Scored(steering, ones, ones) for steering in self.open}
        self.ranks = {steering: self._ranked(steering) for steering in self.open}

    def next(self) -> int | None:
        """The lane whose next cell is needed; None when all winners are known."""
        for steering in self._leaders():
            if self.open[steering]:  # cheap stages first, and of a stage the shard where most will fall
                return min(self.open[steering], key=lambda number: (len(self.done[number]), number))
        return None

    def tell(self, number: int, values: np.ndarray) -> None:
        """Take note of what the next cell of a lane gave, [n] of its shard."""
        chain, done = self.chains[number], [*self.done[number], values]
        steering, place = chain.steering, self.places[number]
        self.done[number] = done
        if chain.next(done) is None:
            self.open[steering] = [other for other in self.open[steering] if other != number]
        clean, robust = self.bounds[steering].clean.copy(), self.bounds[steering].robust.copy()
        clean[place], robust[place] = chain.bounds(done)
        self.bounds[steering] = Scored(steering, clean, robust)
        self.ranks[steering] = self._ranked(steering)

    def if_none_fooled(self, number: int) -> np.ndarray:
        """What the next cell of a lane gives if nothing falls."""
        chain, done = self.chains[number], self.done[number]
        surviving = set(chain.surviving(done))
        return np.array([image in surviving for image in chain.shard.images], np.float32)

    def copy(self) -> BestFirstSearch:
        """One that can be tried out; `tell` puts new values in place of the old ones, so they can be shared."""
        other = copy.copy(self)
        other.done, other.open = dict(self.done), dict(self.open)
        other.bounds, other.ranks = dict(self.bounds), dict(self.ranks)
        return other

    def _leaders(self) -> Iterator[Steering]:
        """Those that must be finished, as far as the bounds can tell."""
        yield from (steering for steering in self.open if steering.is_baseline or steering in self.asked)
        yield from sorted(self.open, key=lambda steering: self.ranks[steering][0])[: self.top]
        for number in range(1, len(self.sets)):
            yield min(self.open, key=lambda steering: self.ranks[steering][number])

    def _ranked(self, steering: Steering) -> list[tuple[float, ...]]:
        """Its rank by its bounds, on each set."""
        bound = self.bounds[steering]
        return [better(Scored(steering, bound.clean[where], bound.robust[where])) for where in self.sets]
