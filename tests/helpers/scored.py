"""Models scored in this process without a search: clean images, then every attempt of each stage on the survivors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from harness.api.dataset import Dataset
from harness.api.model import Model
from harness.api.records import BASELINE, Steering
from harness.api.threat import Threat
from harness.api.trial import CLEAN, INSPECT, Attempt, Result, Trial
from harness.api.work import Portion, Report, Task
from harness.engine.evaluate import evaluate
from harness.engine.session import model_session


def task_of(model: Model, dataset: Dataset, threat: Threat, **changes: Any) -> Task:
    """Return the task of a model on the CPU."""
    weights = model_session(model, "cpu", False, changes.get("normalised", False)).loaded.sha256
    plain = Task(model.label, model, dataset, threat, seed=0, device="cpu", weights_sha256=weights)
    return replace(plain, **changes)


def compute(task: Task, trials: Iterable[Trial], candidates: Mapping[Trial, Tensor] | None = None) -> list[Report]:
    """Return the reports of trials of one stage, as one portion; none of no trials."""
    portion = Portion(task, tuple(trials), candidates or {})
    return [report for reports in evaluate(portion) for report in reports] if portion.trials else []


def results_of(reports: Iterable[Report]) -> dict[Trial, Result]:
    """Return the results by trial; a trial may be there once."""
    every = [result for report in reports for result in report.results]
    found = {result.trial: result for result in every}
    assert len(found) == len(every)
    return found


@dataclass
class Scored:
    """Images under one steering.

    Args:
        clean: score of each clean image.
        alive: images that are classified correctly and survived every attempt so far.
        results: of every trial.
        flags: raised meanwhile.
    """

    clean: dict[int, float] = field(default_factory=dict)
    alive: set[int] = field(default_factory=set)
    results: dict[Trial, Result] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)

    @property
    def lost(self) -> set[int]:
        """Images that are classified correctly and do not survive."""
        return {image for image, value in self.clean.items() if value} - self.alive

    def take(self, reports: Sequence[Report]) -> dict[Trial, Result]:
        """Take note of reports, and return their results."""
        found = results_of(reports)
        assert not found.keys() & self.results.keys()
        self.results |= found
        self.flags |= {flag for report in reports for flag in report.flags}
        return found


def attempts_of(task: Task, clean: Iterable[Result], stage: str) -> Iterator[Trial]:
    """Yield the trials of a stage on images, from the results of their clean trials."""
    for result in clean:
        for attempt in task.threat.attempts(stage, result.answer.ranking):
            yield Trial(result.trial.steering, result.trial.image, attempt)


def score(task: Task, images: Iterable[int], steering: Steering = BASELINE, inspected: bool = False) -> Scored:
    """Score images under a steering, stage by stage."""
    scored, images = Scored(), list(images)
    clean = scored.take(compute(task, [Trial(steering, image, Attempt(CLEAN)) for image in images]))
    scored.clean = {trial.image: result.answer.value for trial, result in clean.items()}
    scored.alive = {image for image, value in scored.clean.items() if value}
    if inspected:
        scored.take(compute(task, [Trial(steering, image, Attempt(INSPECT)) for image in images]))
    for stage in task.attacks:
        left = [result for trial, result in clean.items() if trial.image in scored.alive]
        found = scored.take(compute(task, attempts_of(task, left, stage)))
        scored.alive -= {trial.image for trial, result in found.items() if result.answer.value == 0}
    return scored


def bits(results: Mapping[Trial, Result]) -> dict[Trial, tuple[object, ...]]:
    """Return all of the results that may not depend on who computed them, and how: all but the duration."""
    return {
        trial: (
            repr(result.answer), result.cost.forwards, result.cost.backwards,
            None if result.adversarial is None else result.adversarial.numpy().tobytes(),
        )
        for trial, result in results.items()
    }  # fmt: skip
