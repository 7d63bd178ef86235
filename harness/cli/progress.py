"""Progress on stderr: a bar on a terminal, elsewhere a line from time to time."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.api.work import Report
    from harness.errors import ModelError

LINE_EVERY = 10.0
"""Seconds between two lines where there is no terminal to draw a bar on."""


class ProgressBar:
    """Progress of a run: trials done, image passes a second, and time left.

    The time left follows from the passes through the network that are still to come if no more image is fooled. It
    grows when a leading β falls back and another one has to be finished.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.trials = self.passes = 0
        self.started_at = self.printed_at = monotonic()
        self.task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def started(self, workers: int) -> None:
        """See `harness.engine.scheduler.ProgressListener`."""
        self.started_at = self.printed_at = monotonic()
        self.trials = self.passes = 0
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task("starting", total=None, note="")
        if not self.console.is_terminal:
            self.console.print(f"computing on {workers} worker{'s' * (workers > 1)}", highlight=False)

    def advanced(self, label: str, computed: Sequence[Report], left: float) -> None:
        """See `harness.engine.scheduler.ProgressListener`."""
        results = [result for report in computed for result in report.results]
        self.trials += len(results)
        self.passes += sum(result.cost.forwards for result in results)
        last = results[-1].trial
        where = f"{label} β={last.steering.beta:g} {last.attempt.stage}"
        rate = self.passes / max(monotonic() - self.started_at, 1e-9)
        note = f"{self.trials:,} trials, {rate:,.0f} passes/s, {_duration(left / max(rate, 1e-9))} left"
        assert self.task is not None
        self.bar.update(self.task, completed=self.passes, total=self.passes + left, description=where, note=note)
        if not self.console.is_terminal and monotonic() - self.printed_at > LINE_EVERY:
            self.printed_at = monotonic()
            self.console.print(f"{note}; last {where}", highlight=False, soft_wrap=True)

    def stale(self, label: str, why: str) -> None:
        """See `harness.engine.scheduler.ProgressListener`."""
        self.console.print(f"{label}: {why}", highlight=False, markup=False, soft_wrap=True)

    def failed(self, label: str, error: ModelError) -> None:
        """See `harness.engine.scheduler.ProgressListener`."""
        self.console.print(Text(f"{label}: {error}", style="red"), soft_wrap=True)


class CountBar:
    """Progress of a count.

    Args:
        total: number to count up to.
        what: name of the things counted, in the plural.
    """

    def __init__(self, total: int, what: str) -> None:
        self.console = Console(stderr=True)
        self.total, self.what, self.done = total, what, 0
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(what),
            TimeElapsedColumn(), TimeRemainingColumn(),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> CountBar:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def advanced(self, last: str) -> None:
        """Count one more, and name it."""
        self.done += 1
        self.bar.update(self.task, advance=1, description=last)
        if not self.console.is_terminal:
            self.console.print(f"{self.done} of {self.total} {self.what}: {last}", highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
