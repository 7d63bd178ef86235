"""Cross-validated scores on the training images, by which β is chosen without looking at a test image. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harness.analysis.selection import Scored
from harness.api.dataset import Data
from harness.api.records import Steering
from harness.api.trial import TRAINING, Answer, Attempt, Trial


class TrainingScores:
    """Course of a single round: a trial for each training image and each steering.

    Args:
        steerings: everything to score; β is not chosen among the other methods, so they have no trials.
        training: the training images; folds are made of all of them, so each trial depends on all.
    """

    def __init__(self, steerings: Sequence[Steering], training: Data) -> None:
        self.steerings = tuple(steering for steering in steerings if not steering.method)
        self.images = tuple(training.digests)
        self.attempt = Attempt(TRAINING, of=training.sha256)
        self._values: np.ndarray | None = None

    def ask(self) -> list[Trial]:
        """See `harness.scheduling.course.Course`."""
        return [] if self._values is not None else self._trials()

    def tell(self, answers: Mapping[Trial, Answer]) -> None:
        """See `harness.scheduling.course.Course`."""
        if self._values is None:
            values = np.array([answers[trial].value for trial in self._trials()], np.float32)
            self._values = values.reshape(len(self.steerings), len(self.images))

    def remaining(self) -> float:
        """See `harness.scheduling.course.Course`."""
        return 0.0 if self._values is not None else float(len(self.steerings) * len(self.images))

    def scores(self) -> list[Scored]:
        """Return the score of each steering; training images are not attacked, so clean = robust."""
        if self._values is None:
            raise ValueError("expected the answers of the round; found none; call `tell` with them first")
        return [Scored(steering, row, row) for steering, row in zip(self.steerings, self._values, strict=True)]

    def _trials(self) -> list[Trial]:
        return [Trial(steering, image, self.attempt) for steering in self.steerings for image in self.images]
