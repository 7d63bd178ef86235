"""What is known of every image under every steering: lost, robust, or not yet decided. Pure.

An image is robust at a steering when it is classified correctly and survives every attempt, in whatever order they are
made. So the share of images that are not lost yet is an upper bound on the robust accuracy, and is exact when every
image is decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from harness.api.records import Steering


class Attempt(NamedTuple):
    """One way to lose an image.

    Args:
        kind: attack, such as "apgd-t".
        rank: of the target class among the wrong ones, from 1; 0 where the attack has no target.
        restart: number of the random restart, from 0.
        price: passes of one image through the network, if it survives.
    """

    kind: str
    rank: int = 0
    restart: int = 0
    price: float = 1.0


class Trial(NamedTuple):
    """One image under one steering and one attempt, by their numbers."""

    steering: int
    image: int
    attempt: int


class Verdicts:
    """The table of what is known of one model; it grows by trials told.

    Args:
        steerings: all of them, the baseline among them.
        attempts: all of them, in the order of the attack's authors.
        correct: whether a clean image is classified correctly, bool [steerings, n].
        margins: by how much the right logit leads, float [steerings, n]; small ones fall first.
        targets: the class at each rank of the wrong ones, int [steerings, n, ranks]; empty where nothing is targeted.
    """

    def __init__(
        self,
        steerings: Sequence[Steering],
        attempts: Sequence[Attempt],
        correct: np.ndarray,
        margins: np.ndarray,
        targets: np.ndarray,
    ) -> None:
        self.steerings, self.attempts = tuple(steerings), tuple(attempts)
        self.correct, self.margins, self.targets = correct, margins, targets
        self.alive = correct.copy()
        self.survived = np.zeros((*correct.shape, len(attempts)), bool)
        self.fooled_by = np.full(correct.shape, -1)
        self.tried = 0

    def tell(self, outcomes: Mapping[Trial, bool]) -> None:
        """Take note of trials: whether each fooled the network."""
        for (steering, image, attempt), fooled in outcomes.items():
            self.tried += 1
            if fooled:
                self.alive[steering, image] = False
                self.fooled_by[steering, image] = attempt
            else:
                self.survived[steering, image, attempt] = True

    @property
    def decided(self) -> np.ndarray:
        """Whether an image is lost or robust, bool [steerings, n]."""
        decided: np.ndarray = ~self.alive | self.survived.all(axis=2)
        return decided

    def hints(self, steering: int, nearest: Iterable[int]) -> np.ndarray:
        """Return for each image an attempt that fooled it at another steering and is untried here; −1 for none, int [n].

        A targeted attempt is known by its class, which may have another rank here.

        Args:
            steering: to be attacked.
            nearest: the others, the most alike first.
        """
        n = self.alive.shape[1]
        found = np.full(n, -1)
        open_ = self.alive[steering]
        for other in nearest:
            missing = open_ & (found < 0) & (self.fooled_by[other] >= 0)
            if not missing.any():
                continue
            images = np.flatnonzero(missing)
            here = self.translated(other, steering, images, self.fooled_by[other, images])
            usable = here >= 0
            usable[usable] &= ~self.survived[steering, images[usable], here[usable]]
            found[images[usable]] = here[usable]
        return found

    def translated(self, there: int, here: int, images: np.ndarray, attempts: np.ndarray) -> np.ndarray:
        """Return the attempts here that aim at the class that ``attempts`` aimed at there; −1 where none does, int [k]."""
        if not self.targets.size:
            return attempts
        ranks = np.array([attempt.rank for attempt in self.attempts])[attempts]
        classes = self.targets[there, images, np.maximum(ranks, 1) - 1]
        same = self.targets[here, images] == classes[:, None]
        rank_here = np.where(same.any(axis=1), same.argmax(axis=1) + 1, -1)
        number = {(attempt.kind, attempt.rank, attempt.restart): k for k, attempt in enumerate(self.attempts)}
        translated = [
            attempt if rank == 0 else number.get((self.attempts[attempt].kind, here_rank, self.attempts[attempt].restart), -1)
            for attempt, rank, here_rank in zip(attempts.tolist(), ranks.tolist(), rank_here.tolist(), strict=True)
        ]
        return np.array(translated, int)

    def cheapest(self, steering: int) -> np.ndarray:
        """Return for each image the first attempt that is untried at a steering, in the authors' order, int [n]."""
        return np.asarray(self.survived[steering].argmin(axis=1))
