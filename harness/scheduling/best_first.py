"""Best-first search: find the best β of the grid without finishing the others. Pure.

Robust accuracy after any prefix of the attacks is an upper bound on the final one. So the search always advances the
steering with the highest bound, until that steering is finished: then no other can beat it, and the rest are pruned.
The winner, ties included, is that of the full grid. The same holds on every set of images that the cross-validation
chooses on.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from harness.analysis.selection import Scored, better
from harness.api.records import Steering
from harness.scheduling.trials import TrialChain


class BestFirstSearch:
    """Search over one model's steerings, each with an upper bound that falls as its cells are done.

    It asks for one cell after another. Which one depends on the outcomes alone: not on what else has been computed, nor
    on the number of workers.

    Args:
        chains: the model's chains, by number; within a steering, the shard with the smallest margins first.
        images: numbers of all images, in the order of the data.
        sets: positions in ``images`` that each choice of β is made on, [k] each.
        top: number of steerings to finish, the best on all images.
        required: steerings to finish whatever their rank, besides the baseline.
    """

    def __init__(
        self,
        chains: Mapping[int, TrialChain],
        images: Sequence[int],
        sets: Sequence[np.ndarray],
        top: int,
        required: Collection[Steering] = (),
    ) -> None:
        self.chains = chains
        self.top = top
        self.required = required
        self.sets = [np.arange(len(images)), *sets]
        position = {image: index for index, image in enumerate(images)}
        self.positions = {number: [position[image] for image in chain.shard.images] for number, chain in chains.items()}
        self.done: dict[int, list[np.ndarray]] = {number: [] for number in chains}
        self.open: dict[Steering, list[int]] = {}
        for number, chain in chains.items():
            self.open.setdefault(chain.steering, []).append(number)
        ones = np.ones(len(images), np.float32)
        self.bounds = {steering: Scored(steering, ones, ones) for steering in self.open}
        self.ranks = {steering: self._ranks(steering) for steering in self.open}

    def ask(self) -> int | None:
        """Return the number of the chain whose next cell is needed; None when all winners are known."""
        for steering in self._leaders():
            if self.open[steering]:  # cheap stages first; within a stage, the shard where most images will be fooled
                return min(self.open[steering], key=lambda number: (len(self.done[number]), number))
        return None

    def tell(self, number: int, values: np.ndarray) -> None:
        """Record the outcome of a chain's next cell, [n] for the images of its shard."""
        chain, done = self.chains[number], [*self.done[number], values]
        steering, positions = chain.steering, self.positions[number]
        self.done[number] = done
        if chain.next(done) is None:
            self.open[steering] = [other for other in self.open[steering] if other != number]
        clean, robust = self.bounds[steering].clean.copy(), self.bounds[steering].robust.copy()
        clean[positions], robust[positions] = chain.bounds(done)
        self.bounds[steering] = Scored(steering, clean, robust)
        self.ranks[steering] = self._ranks(steering)

    def if_none_fooled(self, number: int) -> np.ndarray:
        """Return the outcome of a chain's next cell if it fools no image, float32 [n]."""
        chain, done = self.chains[number], self.done[number]
        surviving = set(chain.surviving(done))
        return np.array([image in surviving for image in chain.shard.images], np.float32)

    def copy(self) -> BestFirstSearch:
        """Return a search that can go on without changing this one."""
        other = copy.copy(self)  # `tell` replaces values and changes none, so the values can be shared
        other.done, other.open = dict(self.done), dict(self.open)
        other.bounds, other.ranks = dict(self.bounds), dict(self.ranks)
        return other

    def _leaders(self) -> Iterator[Steering]:
        """Yield the steerings that must be finished, as far as the bounds tell."""
        yield from (steering for steering in self.open if steering.is_baseline or steering in self.required)
        yield from sorted(self.open, key=lambda steering: self.ranks[steering][0])[: self.top]
        for number in range(1, len(self.sets)):
            yield min(self.open, key=lambda steering: self.ranks[steering][number])

    def _ranks(self, steering: Steering) -> list[tuple[float, ...]]:
        """Return a steering's sort key by its bounds (`harness.analysis.selection.better`), for each set of images."""
        bound = self.bounds[steering]
        return [better(Scored(steering, bound.clean[chosen_on], bound.robust[chosen_on])) for chosen_on in self.sets]
