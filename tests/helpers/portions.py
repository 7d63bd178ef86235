"""Portions of a tiny benchmark, and what is delivered of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from harness.api.records import Steering
from harness.api.work import CLEAN, Attempt, Portion, Report, Result, Task, Trial
from harness.config.benchmark import parse_benchmark


def portion(
    benchmark: dict[str, Any],
    *,
    stage: str = CLEAN,
    beta: float = 0.5,
    images: Iterable[int] = range(8),
    device: str = "cpu",
) -> Portion:
    """Return trials of one stage of a benchmark's one model, under one β."""
    from harness.engine.session import model_session

    parsed = parse_benchmark({"name": "tiny"} | benchmark)
    (model,) = parsed.models
    weights = model_session(model, "cpu", True).loaded.sha256
    task = Task(model.label, model, parsed.dataset, parsed.threat, 0, device, weights)
    return Portion(task, tuple(Trial(Steering(beta), image, Attempt(stage)) for image in images))


class Delivered:
    """Takes results as a scheduler does, and keeps each delivery."""

    def __init__(self) -> None:
        self.deliveries: list[Sequence[Report]] = []

    def __call__(self, reports: Sequence[Report]) -> None:
        self.deliveries.append(reports)

    @property
    def results(self) -> list[Result]:
        """All results, in the order of their delivery."""
        return [result for reports in self.deliveries for report in reports for result in report.results]

    def is_each_once(self, portion: Portion) -> bool:
        """Return whether every trial of ``portion`` was delivered exactly once, and no other."""
        return Counter(result.trial for result in self.results) == Counter(portion.trials)
