"""Portions of a tiny benchmark, and what is delivered of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.api.records import Steering
from harness.api.trial import CLEAN, Attempt, Result, Trial
from harness.api.work import Portion, Report, Task
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
    width = parsed.batch_size if isinstance(parsed.batch_size, int) else None
    task = Task(model.label, model, parsed.dataset, parsed.threat, 0, device, weights, batch_size=width)
    return Portion(task, tuple(Trial(Steering(beta), image, Attempt(stage)) for image in images))


class Delivered:
    """Takes results as a scheduler does, and keeps each delivery and its time; networks may wait for the first."""

    def __init__(self) -> None:
        self.deliveries: list[Sequence[Report]] = []
        self.times: list[float] = []

    def __call__(self, reports: Sequence[Report]) -> None:
        self.deliveries.append(reports)
        self.times.append(time.monotonic())
        Path("delivered").touch()  # see `worker_networks`

    @property
    def results(self) -> list[Result]:
        """All results, in the order of their delivery."""
        return [result for reports in self.deliveries for report in reports for result in report.results]

    def is_each_once(self, portion: Portion) -> bool:
        """Return whether every trial of ``portion`` was delivered exactly once, and no other."""
        return Counter(result.trial for result in self.results) == Counter(portion.trials)

    def agrees_with_evaluate(self, portion: Portion) -> bool:
        """Return whether the results are those that this process computes, in the same order."""
        from harness.engine.evaluate import evaluate

        here = [result for reports in evaluate(portion) for report in reports for result in report.results]
        return list(map(_told, self.results)) == list(map(_told, here))


def _told(result: Result) -> tuple[Trial, str]:
    return result.trial, repr(result.answer)  # as text, NaN equals NaN
