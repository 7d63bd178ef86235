"""Cross-validated scores on the training images, by which β is chosen without looking at a test image. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis.selection import Scored
from harness.api.dataset import Data
from harness.api.records import Steering
from harness.api.work import Cell, Shard, Task
from harness.scheduling.trials import TRAINING

if TYPE_CHECKING:
    from harness.scheduling.state import RunProgress


@dataclass(frozen=True)
class TrainingScores:
    """Scores of one steering on all training images, fold by fold: a chain of a single stage."""

    task: Task
    steering: Steering
    training: Shard

    @property
    def stages(self) -> tuple[str, ...]:
        """See `harness.scheduling.state.Chain`."""
        return (TRAINING,)

    @property
    def follows(self) -> None:
        """See `harness.scheduling.state.Chain`."""

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """See `harness.scheduling.state.Chain`."""
        return None if done else Cell(self.task, self.steering, self.training, TRAINING, self.training.images)


def training_score_chains(task: Task, steerings: Sequence[Steering], training: Data) -> list[TrainingScores]:
    """Return a chain for each steering; β is not chosen among the other methods, so they need none."""
    shard = Shard(tuple(training.digests), training.sha256)
    return [TrainingScores(task, steering, shard) for steering in steerings if not steering.method]


def scores_of(progress: RunProgress[TrainingScores], label: str) -> list[Scored]:
    """Return the computed training scores of one model; its training images are not attacked, so clean = robust."""
    scores = []
    for number, chain in progress.of(label).items():
        [values] = progress.values(number)
        scores.append(Scored(chain.steering, values, values))
    return scores
