"""Verdicts so far: which images are lost, which are robust, and which attempts are still to be made. Pure.

An image is robust at a steering when it is classified correctly and survives every attempt, in whatever order they are
made, and every adversarial image found under another steering. So the share of images that are not lost yet is an upper
bound on the robust accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.api.trial import Attempt

if TYPE_CHECKING:
    from harness.api.threat import Threat

ABSENT = np.iinfo(np.int16).max
"""Place of an attempt that is not made at a steering: it aims at a class that is not among the most likely there."""

Rankings = Sequence[Sequence[tuple[int, ...]]]
"""Wrong classes by their logits, for each steering and image."""


class Verdicts:
    """Table of the attempts on each image under each steering.

    The attempts on an image have the same number at every steering: a targeted one is known by its class. A cell of the
    table, a trial, is known by its flat index in [S, n, A]; so sorted cells are in the order of steerings, images,
    stages, classes and restarts.

    Args:
        threat: names the attempts.
        stages: names of its stages, in the order in which they are to be made.
        correct: whether each clean image is classified correctly, bool [S, n].
        rankings: the clean images' wrong classes; see `harness.api.threat.Threat.attempts`.

    Attributes:
        attempts: the attempts on each image, by their numbers.
        stage: number of the stage of each attempt, int [n, A].
        place: position in which each attempt is to be made, int [S, n, A]; `ABSENT` where it is none.
        untried: whether an attempt is still to be made, if the image is not lost, bool [S, n, A].
        fooled: whether an attempt has fooled the network, bool [S, n, A].
        correct: whether each clean image is classified correctly, bool [S, n].
        alive: whether an image is not lost to the steering's own attacks, bool [S, n].
        replayed: whether an adversarial image found under another steering fools the network, bool [S, n].
        missing: number of attempts untried, int [S, n].
    """

    def __init__(self, threat: Threat, stages: Sequence[str], correct: np.ndarray, rankings: Rankings) -> None:
        self.correct, self.alive, self.replayed = correct, correct.copy(), np.zeros_like(correct)
        steerings, n = correct.shape
        made: dict[tuple[int, ...], tuple[Attempt, ...]] = {}
        at: list[dict[tuple[int, ...], list[int]]] = []
        for image in range(n):
            rows: dict[tuple[int, ...], list[int]] = {}
            for steering in np.flatnonzero(correct[:, image]).tolist():
                rows.setdefault(rankings[steering][image], []).append(steering)
            at.append(rows)
            for ranking in rows.keys() - made.keys():
                made[ranking] = tuple(one for stage in stages for one in threat.attempts(stage, ranking))
        number_of = {stage: number for number, stage in enumerate(stages)}
        self.attempts = [
            sorted({one for ranking in rows for one in made[ranking]}, key=lambda one: (number_of[one.stage], *one[1:]))
            for rows in at
        ]
        width = max((len(own) for own in self.attempts), default=0)
        self.stage = np.full((n, width), len(stages), np.int16)
        self.place = np.full((steerings, n, width), ABSENT, np.int16)
        for image, (own, rows) in enumerate(zip(self.attempts, at, strict=True)):
            number = {attempt: a for a, attempt in enumerate(own)}
            self.stage[image, : len(own)] = [number_of[attempt.stage] for attempt in own]
            for ranking, where in rows.items():
                columns = [number[attempt] for attempt in made[ranking]]
                self.place[np.array(where)[:, None], image, columns] = np.arange(len(columns))
        self.untried = self.place != ABSENT
        self.fooled = np.zeros_like(self.untried)
        self.missing = self.untried.sum(axis=2)

    @property
    def robust(self) -> np.ndarray:
        """Table of the images that are not lost at all: neither to own attacks nor to the replay; bool [S, n]."""
        robust: np.ndarray = self.alive & ~self.replayed
        return robust

    @property
    def decided(self) -> np.ndarray:
        """Table of the images that own attacks have decided, lost or robust; bool [S, n]."""
        decided: np.ndarray = ~self.alive | (self.missing == 0)
        return decided

    def tell(self, cells: np.ndarray, fooled: np.ndarray) -> None:
        """Take note of trials that were untried.

        Args:
            cells: flat indices, int [k], each once.
            fooled: whether each has fooled the network, bool [k].
        """
        self.untried.reshape(-1)[cells] = False
        self.fooled.reshape(-1)[cells[fooled]] = True
        steerings, images, _ = np.unravel_index(cells, self.place.shape)
        np.subtract.at(self.missing, (steerings, images), 1)
        self.alive[steerings[fooled], images[fooled]] = False

    def open(self, steerings: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return the untried attempts on images that are not lost, bool [k, n, A]."""
        found: np.ndarray = self.untried[steerings] & self.alive[steerings][:, :, None]
        return found

    def cells(self, steerings: np.ndarray, images: np.ndarray, attempts: np.ndarray) -> np.ndarray:
        """Return the flat indices of trials, int [k]."""
        return np.ravel_multi_index((steerings, images, attempts), self.place.shape)

    def of(self, steering: int, stages: np.ndarray) -> np.ndarray:
        """Return the verdicts of some stages: 0 lost cleanly or to one of their attempts, 1 survived all, NaN unknown.

        Args:
            steering: number of the steering.
            stages: numbers of the stages that count.
        """
        counts = np.isin(self.stage, stages)
        lost = (self.fooled[steering] & counts).any(axis=1) | ~self.correct[steering]
        survived = ~(self.untried[steering] & counts).any(axis=1)
        return np.where(lost, 0, np.where(survived, 1, np.nan)).astype(np.float32)
