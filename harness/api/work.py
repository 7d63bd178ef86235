"""Units of work: trials, the portions in which they are sent to workers, and their results."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.api.records import AS_STORED, Compile, Precision, Preprocessing, Steering

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api.dataset import Dataset
    from harness.api.model import Model
    from harness.api.threat import Threat

SCORING_VERSION = 4
"""Part of every trial's identity; raised when a change of the code could change a result."""

CLEAN = "clean"
"""Stage before the threat's: the unperturbed image."""
INSPECT = "inspect"
"""Stage after the attacks: a look on clean images for signs of gradient masking; it judges no image."""
REPLAY = "replay"
"""Stage after the attacks: adversarial images that fooled other steerings; see `harness.scheduling.replay`."""
TRAINING = "training"
"""Stage before the threat's: cross-validation on the training images; see `harness.scheduling.training_scores`."""
OWN_STAGES = (CLEAN, INSPECT, REPLAY, TRAINING)
"""Stages of the harness's own; no threat may name one of its stages so."""
INDIVISIBLE = (INSPECT, TRAINING)
"""Stages whose trials under one steering are computed together, since they share one computation."""


@dataclass(frozen=True)
class Task:
    """Everything that the trials of one model share.

    Args:
        label: the model's name on the leaderboard.
        model: the model to load.
        dataset: the dataset to read.
        threat: the threat to score under.
        seed: the benchmark's seed.
        device: device to compute on, such as "cpu" or "cuda:1".
        weights_sha256: hash of the model that was loaded; a worker must find the same.
        preprocessing: resizing and cropping that the model expects.
        offline: whether to refuse every download.
        compile: whether attacks run on a compiled network; see `harness.engine.acceleration`.
        precision: precision of the network under attack; it is always judged in float32.
        batch_size: most images that go through the network at once; None to measure what is fastest. A matter of
            speed alone.
        normalised: whether images are normalised before they are attacked; see `harness.config.protocol`.
        recipe: description of how a part is fitted; see `harness.api.model.Scorable.recipe`.
    """

    label: str
    model: Model
    dataset: Dataset
    threat: Threat
    seed: int
    device: str
    weights_sha256: str
    preprocessing: Preprocessing = AS_STORED
    offline: bool = False
    compile: Compile = "auto"
    precision: Precision = "float32"
    batch_size: int | None = None
    normalised: bool = False
    recipe: str = ""

    def identity(self, steering: Steering) -> dict[str, Any]:
        """Return all that the results of one steering depend on besides image and attempt, as JSON.

        Paths, the device, the batch size, and the other images and steerings are left out.
        """
        return (
            {
                "scoring": SCORING_VERSION,
                "model": self.model.identity(),
                "weights": self.weights_sha256,
                "threat": self.threat.identity(),
                "seed": self.seed,
                "steering": steering.identity(),
            }
            | ({"space": "normalised"} if self.normalised else {})
            | ({} if self.precision == "float32" else {"precision": self.precision})
            | ({"recipe": self.recipe} if self.recipe else {})
        )

    def attempt_identity(self, attempt: Attempt) -> dict[str, Any]:
        """Return what one attempt is, with all of its parameters, as JSON."""
        if attempt.stage == CLEAN:
            return {"stage": CLEAN, "ranks": self.threat.ranks}
        of = {"of": attempt.of} if attempt.of else {}
        target = {"target": attempt.target} if attempt.target >= 0 else {}
        restart = {"restart": attempt.restart} if attempt.restart else {}
        own = {"stage": attempt.stage} if attempt.stage in OWN_STAGES else self.threat.stage_identity(attempt.stage)
        return own | of | target | restart

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the stages that are attacks; none with reduction "mean"."""
        return self.threat.attacks


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


class Answer(NamedTuple):
    """What a trial has shown.

    Args:
        value: score of the image: 1 survived, 0 fooled; or how good a graded answer is.
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


@dataclass(frozen=True)
class Report:
    """Results of one steering, computed under the same circumstances.

    Args:
        results: the results, all of one steering.
        flags: names of the `harness.api.threat.Flag` warnings that were raised meanwhile.
        provenance: versions and device that they were computed with.
    """

    results: tuple[Result, ...]
    flags: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def steering(self) -> Steering:
        """The steering of all the results."""
        return self.results[0].trial.steering


@dataclass(frozen=True)
class Portion:
    """Trials of one stage that are sent to a worker together.

    Args:
        task: everything that the model's trials share.
        trials: the trials, all of one stage; of an indivisible stage, all that belong together.
        candidates: adversarial images that each trial of a replay shows, float32 [k, c, h, w]; empty for other stages.
    """

    task: Task
    trials: tuple[Trial, ...]
    candidates: Mapping[Trial, Tensor] = field(default_factory=dict, repr=False)

    @property
    def stage(self) -> str:
        """The stage of all the trials."""
        return self.trials[0].attempt.stage

    def without(self, done: Collection[Trial]) -> Portion | None:
        """Return what is left when some trials are done; None if nothing is."""
        left = tuple(trial for trial in self.trials if trial not in done)
        candidates = {trial: self.candidates[trial] for trial in left if self.candidates}
        return replace(self, trials=left, candidates=candidates) if left else None
