"""Scores made by hand, from which boards are made."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from harness.api.records import Coverage, Steering
from harness.api.trial import Cost
from harness.leaderboard.scores import ModelEntry, Score

SHARED: dict[str, object] = {
    "model": "m", "family": "relu", "dataset": "digits[:4]", "threat": "Linf", "eps": "0.1", "attack": "standard",
    "protocol": "pixel", "n": 4, "seed": 0, "data_sha256": "da", "weights_sha256": "we",
}  # fmt: skip


def score(beta: float, robust: ArrayLike, clean: ArrayLike, c: float = 0.5, **changes: Any) -> Score:
    """Return a complete score of these images under a steering; ``changes`` replace its other fields."""
    fields: dict[str, Any] = {
        "steering": Steering(beta, c), "clean": np.array(clean, np.float32), "robust": np.array(robust, np.float32),
        "complete": True, "stages": {}, "summary_columns": {}, "attacked": True, "own": None, "flags": frozenset(),
        "cost": Cost(9, 3, 1.26),
        "versions": {"ct_harness": "1", "torch": "2", "device": "cpu", "compiled": "no", "weights_sha256": "we"},
    }  # fmt: skip
    return Score(**(fields | changes))


def entry(*scores: Score, **changes: Any) -> ModelEntry:
    """Return a model with these scores; ``changes`` replace its other fields."""
    fields: dict[str, Any] = {"shared": SHARED, "scores": scores, "coverage": Coverage(3, 2, {})}
    return ModelEntry(**(fields | changes))
