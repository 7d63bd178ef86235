"""Tables of all that a benchmark's trials would show, to hold a search against brute force."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from harness.analysis.selection import Scored
from harness.api.records import Batch, Steering
from harness.api.threat import Passes, Threat
from harness.api.trial import CLEAN, INSPECT, REPLAY, Answer, Attempt, Trial
from harness.scheduling.guided import GuidedSearch

if TYPE_CHECKING:
    from harness.util.noise import Noise


class Attacks(Threat):
    """AutoAttack's stages with as many restarts and targets as asked for, which nobody runs."""

    kind: ClassVar[str] = "attacks"
    chosen: tuple[str, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
    targets: int = 9
    restarts: int = 1

    @property
    def stages(self) -> tuple[str, ...]:
        return self.chosen

    @property
    def ranks(self) -> int:
        return self.targets

    def attempts(self, stage: str, ranking: Sequence[int]) -> tuple[Attempt, ...]:
        aims = tuple(ranking[: self.targets]) if stage.endswith("-t") else (-1,)
        return tuple(Attempt(stage, target, restart) for target in aims for restart in range(self.restarts))

    def passes(self, stage: str, classes: int) -> Passes:
        one = {"apgd-ce": 101, "apgd-t": 101, "fab-t": 200, "square": 5001}.get(stage, 7)
        return Passes(forwards=one * len(self.attempts(stage, range(1, classes))))

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        raise NotImplementedError


class Averaged(Attacks):
    """Stages that are averaged."""

    kind: ClassVar[str] = "averaged"
    reduction: ClassVar[Literal["worst", "mean"]] = "mean"

    def attempts(self, stage: str, ranking: Sequence[int]) -> tuple[Attempt, ...]:
        return (Attempt(stage),)


@dataclass
class Table:
    """What every trial of a benchmark would show.

    Args:
        threat: names the attempts.
        steerings: everything to score.
        images: numbers of the images.
        answers: of the clean trials.
        values: of all others; a missing one is 1, survived.
        transfers: whether the adversarial image of a trial fools a steering too.
    """

    threat: Threat
    steerings: tuple[Steering, ...]
    images: tuple[int, ...]
    answers: dict[tuple[Steering, int], Answer]
    values: dict[Trial, float] = field(default_factory=dict)
    transfers: Callable[[Trial, Steering], bool] = lambda source, steering: False

    @property
    def digests(self) -> dict[int, str]:
        return {image: f"digest of {image}" for image in self.images}

    def answer(self, trial: Trial, sources: Mapping[Trial, Collection[Trial]] = MappingProxyType({})) -> Answer:
        """Return what a trial shows; of a replay, from the trials whose adversarial images it shows."""
        if trial.attempt.stage == CLEAN:
            return self.answers[trial.steering, trial.image]
        if trial.attempt.stage == REPLAY:
            return Answer(float(not any(self.transfers(one, trial.steering) for one in sources[trial])))
        return Answer(self.values.get(trial, 1.0))

    def attempts(self, steering: Steering, image: int) -> list[Trial]:
        """Return every attempt on an image, by the contract of the threat."""
        ranking = self.answers[steering, image].ranking
        made = (one for stage in self.threat.stages for one in self.threat.attempts(stage, ranking))
        return [Trial(steering, image, attempt) for attempt in made]

    def scored(self, steering: Steering) -> Scored:
        """Return the scores of a steering, by brute force."""
        clean = [self.answers[steering, image].value for image in self.images]
        shown = [[self.answer(trial).value for trial in self.attempts(steering, image)] for image in self.images]
        if self.threat.reduction == "mean":
            robust = np.array(shown, np.float32).mean(axis=1, dtype=np.float32)
        else:
            robust = np.array([min([own, *values]) for own, values in zip(clean, shown, strict=True)], np.float32)
        return Scored(steering, np.array(clean, np.float32), robust)


def run(course: GuidedSearch, table: Table) -> list[list[Trial]]:
    """Return the rounds of a course, each answered by the table."""
    rounds = []
    while trials := course.ask():
        rounds.append(trials)
        course.tell({trial: table.answer(trial, course.sources) for trial in trials})
    return rounds


def attacks(rounds: Sequence[Sequence[Trial]]) -> list[list[Trial]]:
    """Return the rounds of attacks among all rounds, in order."""
    own = {CLEAN, INSPECT, REPLAY}
    return [list(trials) for trials in rounds if trials[0].attempt.stage not in own]
