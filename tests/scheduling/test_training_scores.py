"""Scores on the training images: one round, and its answers in their places."""

from __future__ import annotations

import numpy as np
import pytest

from harness.api.dataset import Data
from harness.api.trial import TRAINING, Answer, Attempt, Trial
from harness.scheduling.grid import grid
from harness.scheduling.training_scores import TrainingScores

STEERINGS = grid([0.5], [0.5], "all", methods=["lora"])
DATA = Data({9: "a", 4: "b"}, np.array([0, 1]))


def test_every_training_image_is_scored_once_at_every_steering_and_at_no_other_method() -> None:
    course = TrainingScores(STEERINGS, DATA)
    attempt = Attempt(TRAINING, of=DATA.sha256)
    asked = course.ask()
    assert asked == [Trial(steering, image, attempt) for steering in STEERINGS[:2] for image in (9, 4)]
    assert course.remaining() == 4
    course.tell({trial: Answer(number / 4) for number, trial in reversed(list(enumerate(asked)))})
    assert not course.ask()
    assert course.remaining() == 0
    for scored, values in zip(course.scores(), ([0, 0.25], [0.5, 0.75]), strict=True):
        np.testing.assert_array_equal(scored.clean, np.array(values, np.float32))
        np.testing.assert_array_equal(scored.robust, scored.clean)


def test_scores_before_the_answers_are_an_error() -> None:
    with pytest.raises(ValueError, match="call `tell`"):
        TrainingScores(STEERINGS, DATA).scores()
