"""Contest of the steerings: who leads by the bounds, who may still win, and who has won. Pure.

There is one contest on all images, with as many winners as are to be finished, and one on each set of images that a
choice of β is made on, with one winner.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from harness.api.records import Steering


class Standing(NamedTuple):
    """Standing of one contest.

    Args:
        where: positions of the images of its set, int [k].
        top: number of winners.
        ranked: numbers of the steerings by their bounds, best first, int [c].
        known: whether the score of each of them is known, bool [c].
    """

    where: np.ndarray
    top: int
    ranked: np.ndarray
    known: np.ndarray

    @property
    def is_decided(self) -> bool:
        """True if the winners are known."""
        return bool(self.known[: self.top].all())

    @property
    def leader(self) -> int:
        """Number of the best steering whose score is not known, where the winners are not."""
        return int(self.ranked[np.flatnonzero(~self.known)[0]])

    @property
    def contenders(self) -> tuple[np.ndarray, int]:
        """Numbers of the steerings that may still win, and the number of the one that they have to beat.

        That is the last of as many finished ones as there are winners; while too few are finished, whoever is last.
        """
        finished = np.flatnonzero(self.known)
        floor = int(finished[self.top - 1]) if len(finished) >= self.top else len(self.ranked) - 1
        return self.ranked[:floor][~self.known[:floor]], int(self.ranked[floor])


class Contest:
    """Contests of one model's steerings.

    Ranks are those of `harness.analysis.selection.better`, ties included; equal steerings keep their order.

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

    def standings(self, robust: np.ndarray, decided: np.ndarray) -> list[Standing]:
        """Return the standing of each contest, that on all images first.

        Args:
            robust: robust scores, or upper bounds on them, [S, n].
            decided: whether a score is known, bool [S, n].
        """
        bounds, known = robust[self.choices], decided[self.choices]
        found = []
        for where, top, clean in zip(self.sets, self.tops, self._clean, strict=True):
            order = np.lexsort((self._from_half, self._from_native, -clean, -_means(bounds[:, where])))
            found.append(Standing(where, top, self.choices[order], known[:, where].all(axis=1)[order]))
        return found

    def to_be_finished(self, standings: Sequence[Standing], leaders: bool = False) -> np.ndarray:
        """Return the numbers of the steerings that must be finished: the required ones and the winners that are known.

        Args:
            standings: the standing of each contest.
            leaders: whether those that lead are named too, though they may yet be overtaken.
        """
        finish = set(self.required)
        for standing in standings:
            if leaders or standing.is_decided:
                finish.update(standing.ranked[: standing.top].tolist())
        return np.array(sorted(finish), int)


def _means(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row, rounded as `harness.analysis.selection.better` does it."""
    return np.array([round(mean, 9) for mean in values.mean(axis=1, dtype=np.float64).tolist()])
