"""Replay: adversarial images found under one steering, shown to the other steerings of the same model. Pure.

A steering whose own attacks failed on an image, but which an image found under another steering fools, is not robust
there: its attacks were weak. Only surviving images can still change a score, so only these are replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from harness.api.records import Steering
from harness.api.trial import REPLAY, Answer, Attempt, Trial
from harness.scheduling.verdicts import Verdicts
from harness.util.hashing import sha256

Sources = tuple[Trial, ...]
"""Trials whose adversarial images are shown."""


class Replay:
    """Adversarial images found so far, each shown once to every steering that is replayed.

    Args:
        verdicts: what is known of the attacks; it is told of the images that are lost to the replay.
        steerings: all steerings.
        images: numbers of the images.
        shown: numbers of the steerings whose adversarial images are shown.

    Attributes:
        sources: of each trial that was asked for, the trials whose adversarial images it shows.
    """

    def __init__(
        self, verdicts: Verdicts, steerings: Sequence[Steering], images: Sequence[int], shown: np.ndarray
    ) -> None:
        self.verdicts, self.steerings, self.images, self.shown = verdicts, steerings, images, shown
        self.sources: dict[Trial, Sources] = {}
        self._cells: dict[Trial, tuple[int, int]] = {}
        self._rounds = 0
        self._found_in = np.zeros(verdicts.fooled[shown].shape, np.int32)  # round that first shows it; 0 is none
        self._seen = np.zeros(len(steerings), np.int32)  # last round in which a steering was shown everything

    @property
    def has_begun(self) -> bool:
        """True once anything was shown."""
        return bool(self.sources)

    def ask(self, numbers: np.ndarray) -> list[Trial]:
        """Return the trials that show to some steerings what they have not seen, in canonical order.

        Args:
            numbers: numbers of the steerings, int [k].
        """
        self._rounds += 1
        self._found_in[self.verdicts.fooled[self.shown] & (self._found_in == 0)] = self._rounds
        numbers = np.intersect1d(numbers, self.shown)
        found: dict[tuple[int, int], tuple[Trial, Sources]] = {}
        for since in np.unique(self._seen[numbers]).tolist():
            found |= self._unseen(numbers[self._seen[numbers] == since], since)
        self._seen[numbers] = self._rounds
        asked = {trial: cell for cell, (trial, _) in sorted(found.items())}
        self._cells |= asked
        self.sources |= {trial: found[cell][1] for trial, cell in asked.items()}
        return list(asked)

    def _unseen(self, numbers: np.ndarray, since: int) -> dict[tuple[int, int], tuple[Trial, Sources]]:
        """Return, by steering and position, the trials that show what was found after a round, and their sources."""
        new, robust = self._found_in > since, self.verdicts.robust[numbers]
        found = {}
        for position in np.flatnonzero(robust.any(axis=0) & new.any(axis=(0, 2))).tolist():
            sources = tuple(self._sources(new[:, position], position))
            shows = Attempt(REPLAY, of=sha256([[trial.steering.identity(), *trial.attempt] for trial in sources]))
            for number in numbers[robust[:, position]].tolist():
                found[number, position] = Trial(self.steerings[number], self.images[position], shows), sources
        return found

    def _sources(self, new: np.ndarray, position: int) -> Iterator[Trial]:
        for row, attempt in zip(*np.nonzero(new), strict=True):
            made = self.verdicts.attempts[position][attempt]
            yield Trial(self.steerings[self.shown[row]], self.images[position], made)

    def tell(self, answers: Mapping[Trial, Answer]) -> None:
        """Take note of the answers to trials that were asked for."""
        for trial, answer in answers.items():
            if answer.value <= 0:
                self.verdicts.replayed[self._cells[trial]] = True
