"""The scores of a model, image by image, from which its rows are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.analysis.metrics import METRICS, Metric
from harness.analysis.selection import Choice, Scored
from harness.analysis.statistics import Paired
from harness.api.records import Coverage, Steering
from harness.api.trial import Cost
from harness.errors import ModelError
from harness.leaderboard.row import CT, LINEAR_PROBE, UNTOUCHED


@dataclass(frozen=True)
class Score(Scored):
    """Scores of one model under one steering; `Scored` has the clean and robust ones.

    Args:
        complete: whether every image is decided; otherwise the scores are upper bounds.
        stages: scores after each stage, in order, the clean one first; float32 [n] each, NaN where they are not known.
        summary_columns: further columns of the row, from the threat.
        attacked: whether the threat attacks, so that ``robust`` counts what fooled other steerings too.
        own: robust scores against the row's own attack alone, [n]; None where it is not finished or not attacked.
        flags: raised by any of its trials, or by these scores.
        cost: sum over its trials.
        versions: ``ct_harness``, ``torch``, ``device`` and ``weights_sha256`` of its trials, joined by ``+`` where they
            differ.
        unit_test: share of the planted adversarial examples that the attack has found; None where there are none.
    """

    complete: bool
    stages: Mapping[str, np.ndarray]
    summary_columns: Mapping[str, float]
    attacked: bool
    own: np.ndarray | None
    flags: frozenset[str]
    cost: Cost
    versions: dict[str, str]
    unit_test: float | None = None


@dataclass(frozen=True)
class Headline:
    """Result of choosing β.

    Args:
        name: the selection procedure with its setting, ``cross_validation:5``.
        choice: the β chosen for each fold, and the images each is reported on.
        gain: the procedure compared with the baseline on the same images.
        status: `harness.leaderboard.row.SELECTED` or `harness.leaderboard.row.IN_SAMPLE`.
    """

    name: str
    choice: Choice
    gain: Paired
    status: str


@dataclass(frozen=True)
class ModelEntry:
    """One model on the board: its scores, or why there are none.

    Args:
        shared: values of the columns that all its rows share.
        scores: one for each steering and other method; empty for a model that failed.
        headline: the choice of β; None for a model that failed.
        coverage: the activations that the steering reaches.
        trainable: number of fitted parameters by method; "" stands for the steerings.
        metric: what the scores measure.
        failure: why the model was not scored; None where it was.
        flag: the flag that names this failure, if any.
        lost: errors of the other methods that were not scored, by method.
    """

    shared: dict[str, object]
    scores: Sequence[Score] = ()
    headline: Headline | None = None
    coverage: Coverage | None = None
    trainable: Mapping[str, int] = field(default_factory=lambda: {"": 0})
    metric: Metric = METRICS["class"]
    failure: str | None = None
    flag: str | None = None
    lost: Mapping[str, ModelError] = field(default_factory=dict)

    def method_of(self, steering: Steering) -> str:
        """Return the value of the column ``method`` for a steering."""
        if steering.is_baseline:
            return LINEAR_PROBE if self.trainable[""] else UNTOUCHED
        return steering.method or CT
