"""A trial, the unit of work: one image under one steering and one attempt; its answer, its cost and its result."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from harness.api.records import Steering

if TYPE_CHECKING:
    from torch import Tensor

CLEAN = "clean"
"""Stage before the threat's: the unperturbed image."""
INSPECT = "inspect"
"""Stage after the attacks: a look on clean images for signs of gradient masking, and the attack's unit test."""
REPLAY = "replay"
"""Stage after the attacks: adversarial images that fooled other steerings; see `harness.scheduling.replay`."""
TRAINING = "training"
"""Stage before the threat's: cross-validation on the training images; see `harness.scheduling.training_scores`."""
OWN_STAGES = (CLEAN, INSPECT, REPLAY, TRAINING)
"""Stages of the harness's own; no threat may name one of its stages so."""
INDIVISIBLE = (INSPECT, TRAINING)
"""Stages whose trials under one steering are computed together, since they share one computation."""


class Attempt(NamedTuple):
    """One way to lose an image under a threat.

    Args:
        stage: one of the threat's stages, or of `OWN_STAGES`.
        target: class that a targeted attack aims at; −1 where it aims at none.
        restart: number of the random restart, from 0.
        of: hash of what else the attempt depends on: of a replay, the adversarial images that it shows; of an
            indivisible stage, all of its images.
    """

    stage: str
    target: int = -1
    restart: int = 0
    of: str = ""


class Trial(NamedTuple):
    """The unit of work, of resume and of distribution: one image under one steering and one attempt.

    Args:
        steering: the point of the grid, or another method.
        image: number of the image in its dataset.
        attempt: the way in which the image may be lost.
    """

    steering: Steering
    image: int
    attempt: Attempt


def by_steering(trial: Trial) -> Steering:
    """Return a trial's steering, to group trials by."""
    return trial.steering


class Answer(NamedTuple):
    """Answer of the network in a trial.

    Args:
        value: score of the image: 1 survived, 0 fooled; or how good a graded answer is. Of an inspection, 1 where the
            attack found the planted adversarial example, 0 where it did not, NaN without one.
        margin: of a clean trial with class labels, the correct logit's lead over the runner-up; otherwise NaN.
        ranking: of a clean trial, the wrong classes with the largest logits, largest first; `Threat.ranks` of them, or
            all that there are.
    """

    value: float
    margin: float = math.nan
    ranking: tuple[int, ...] = ()


class Cost(NamedTuple):
    """Price of a trial.

    Args:
        forwards: forward passes of its image through the network, those with a backward pass included.
        backwards: backward passes of its image.
        seconds: its share of the time that its batch took.
    """

    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0

    def plus(self, other: Cost) -> Cost:
        """Return the price of both."""
        return Cost(self.forwards + other.forwards, self.backwards + other.backwards, self.seconds + other.seconds)


class Result(NamedTuple):
    """Result of a trial.

    Args:
        trial: the trial.
        answer: what it has shown.
        cost: its price.
        adversarial: verified adversarial image, float32 [c, h, w] on the CPU, if the trial is an attack and has fooled
            the network.
    """

    trial: Trial
    answer: Answer
    cost: Cost
    adversarial: Tensor | None = None
