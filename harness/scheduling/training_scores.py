"""How well does a steering do on training images that its probe was not fitted on? There β is chosen. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    """One steering on all training images, fold by fold. Runs like a lane of one stage."""

    task: Task
    steering: Steering
    training: Shard

    @property
    def stages(self) -> tuple[str, ...]:
        """The one."""
        return (TRAINING,)

    @property
    def follows(self) -> None:
        """No other."""

    def next(self, done: Sequence[np.ndarray]) -> Cell | None:
        """The cell, until it is done."""
        return None if done else Cell(self.task, self.steering, self.training, TRAINING, self.training.images)


def training_score_chains(task: Task, steerings: Sequence[Steering], training: Data) -> list[TrainingScores]:
    """One for each steering; other methods are not chosen from."""
    shard = Shard(tuple(training.digests), training.sha256)
    return [TrainingScores(task, steering, shard) for steering in steerings if not steering.method]


def scored(state: RunProgress[Any], label: str) -> list[Scored]:
    """What the finished rehearsals of a model gave; of no image is anything known but this one score."""
    found = []
    for number, chain in state.of(label).items():
        [values] = state.values(number)
        found.append(Scored(chain.steering, values, values))
    return found
