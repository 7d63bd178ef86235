"""Contest of the steerings: who leads by the bounds, who may still win, and who has won. Pure.

There is one contest on all images, with as many winners as are to be finished, and one on each set of images that a
choice of β is made on, with one winner.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from harness.api.records import Steering


class Undecided(NamedTuple):
    """A set of images that has no known winner.

    Args:
        where: positions of its images, int [k].
        leader: number of the best steering by its bounds that is not decided on the set.
        contenders: numbers of the steerings that may still win, as far as is known, int [c].
        floor: number of the steering that they have to beat.
    """

    where: np.ndarray
    leader: int
    contenders: np.ndarray
    floor: int


class Contest:
    """Ranks as by `harness.analysis.selection.better`, ties included; equal steerings keep their order.

    Args:
        steerings: all steerings; other methods do not take part, but are finished.
        sets: positions of the images of each set besides all of them, [k] each.
        clean: clean scores, float [S, n].
        top: number of winners on all images; None finishes every steering.
        required: steerings to finish whatever their rank.
    """

    def __init__(
        self,
        steerings: Sequence[Steering],
        sets: Sequence[np.ndarray],
        clean: np.ndarray,
        top: int | None,
        required: Collection[Steering],
    ) -> None:
        self.sets = [np.arange(clean.shape[1]), *sets]
        self.full = top is None
        self.choices = np.array([number for number, one in enumerate(steerings) if not one.method], int)
        self.tops = [min(len(self.choices) if top is None else top, len(self.choices)), *(1 for _ in sets)]
        self.required = {
            number
            for number, steering in enumerate(steerings)
            if self.full or steering.is_baseline or steering.method or steering in required
        }
        chosen = [steerings[number] for number in self.choices]
        self._clean = [_means(clean[self.choices][:, where]) for where in self.sets]
        self._from_native = np.array([abs(steering.beta - steering.native) for steering in chosen])
        self._from_half = np.array([abs(steering.c - 0.5) for steering in chosen])

    def best_first(self, robust: np.ndarray, number: int) -> np.ndarray:
        """Return the numbers of the steerings by their bounds on one set, best first.

        Args:
            robust: robust scores, or upper bounds on them, [S, n].
            number: number of the set.
        """
        means = _means(robust[np.ix_(self.choices, self.sets[number])])
        return self.choices[np.lexsort((self._from_half, self._from_native, -self._clean[number], -means))]

    def undecided(self, robust: np.ndarray, decided: np.ndarray) -> Iterator[Undecided]:
        """Yield the sets without a known winner, all images first.

        Args:
            robust: upper bounds on the robust scores, [S, n].
            decided: whether a score is known, bool [S, n].
        """
        for number, (where, top) in enumerate(zip(self.sets, self.tops, strict=True)):
            ranked = self.best_first(robust, number)
            known = decided[np.ix_(ranked, where)].all(axis=1)
            if not known[:top].all():
                finished = np.flatnonzero(known)
                floor = int(finished[top - 1]) if len(finished) >= top else len(ranked) - 1
                leader = int(ranked[np.flatnonzero(~known)[0]])
                yield Undecided(where, leader, ranked[:floor][~known[:floor]], int(ranked[floor]))

    def to_be_finished(self, robust: np.ndarray, decided: np.ndarray, leaders: bool = False) -> np.ndarray:
        """Return the numbers of the steerings that must be finished: the required ones and the winners that are known.

        Args:
            robust: upper bounds on the robust scores, [S, n].
            decided: whether a score is known, bool [S, n].
            leaders: whether those that lead a set are named too, though they may yet be overtaken.
        """
        finish = set(self.required)
        for number, (where, top) in enumerate(zip(self.sets, self.tops, strict=True)):
            best = self.best_first(robust, number)[:top]
            if leaders or decided[np.ix_(best, where)].all():
                finish.update(best.tolist())
        return np.array(sorted(finish), int)


def _means(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row, rounded as `harness.analysis.selection.better` does it."""
    return np.array([round(mean, 9) for mean in values.mean(axis=1, dtype=np.float64).tolist()])
