"""A submitted portion: what of it is delivered, what is left to compute, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from harness.api.executor import Deliver
from harness.api.work import Portion, Report
from harness.errors import ModelError
from harness.executors.worker import Answer

ATTEMPTS = 3
"""Number of workers that may be lost with a portion before the portion is held responsible."""


class Submission:
    """A portion on its way through one or several workers; one thread at a time uses it.

    Args:
        portion: trials to compute.
        deliver: takes the results.
    """

    def __init__(self, portion: Portion, deliver: Deliver) -> None:
        self.label = portion.task.label
        """The model's name on the leaderboard."""
        self.left: Portion | None = portion
        """Trials that are not delivered yet; None if there are none."""
        self.future: Future[None] = Future()
        self._deliver = deliver
        self._workers_lost = 0

    def accept(self, answer: Answer) -> None:
        """Deliver results, or resolve the future with the last answer."""
        if isinstance(answer, Exception):
            self.fail(answer)
        elif answer is None:
            self._succeed()
        elif self.left is not None and not self.future.done():
            self._hand_over(answer, self.left)

    def retry(self, reason: str, remedy: str) -> None:
        """Note that the worker was lost; fail if too many were.

        Args:
            reason: what happened to the worker, for the error message.
            remedy: what to do if it ran out of memory, for the error message; empty if it did not.
        """
        if self.left is None:
            self._succeed()
            return
        self._workers_lost += 1
        if self._workers_lost == ATTEMPTS:
            count = len(self.left.trials)
            guess = f" (out of memory?); {remedy}" if remedy else ""
            self.fail(ModelError(
                f"its worker was lost {ATTEMPTS} times on stage {self.left.stage} with {count} "
                f"trial{'s' * (count != 1)} left{guess}. {reason}"
            ))  # fmt: skip

    def fail(self, error: Exception) -> None:
        """Resolve the future with an error, unless it is resolved or cancelled."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def _succeed(self) -> None:
        with suppress(InvalidStateError):
            self.future.set_result(None)

    def _hand_over(self, reports: Sequence[Report], left: Portion) -> None:
        try:
            self._deliver(reports)
        except Exception as error:  # the caller's own, who hears of it through the future
            self.fail(error)
        else:
            self.left = left.without({result.trial for report in reports for result in report.results})
