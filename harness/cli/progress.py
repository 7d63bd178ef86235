"""Progress on stderr: a bar on a terminal, elsewhere a line from time to time."""

from __future__ import annotations

from collections import defaultdict
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from harness.api.work import Cell, Outcome
    from harness.errors import ModelError
    from harness.scheduling.policies import SchedulingPolicy


LINE_EVERY = 10.0
"""Seconds between two lines where there is no terminal to draw a bar on."""


class ProgressBar:
    """Progress of a run: cells done, cells a second, and time left.

    The time left is the sum over the remaining cells, each at the mean time of its stage so far: Square takes many
    times longer than APGD, so the share of cells alone would be a poor estimate.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cells"),
            TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.slots, self.done = 1, 0
        self.times: dict[str, list[float]] = defaultdict(list)
        self.started_at = self.printed_at = monotonic()

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def started(self, policy: SchedulingPolicy, known: int, slots: int) -> None:
        """See `harness.engine.scheduler.ProgressListener`."""
        self.slots = slots
        self.times.clear()
        for task in self.bar.task_ids:
            self.bar.remove_task(task)
        self.started_at = self.printed_at = monotonic()
        left = policy.remaining().total()
        self.done = known
        self.task = self.bar.add_task("starting", total=known + left, completed=known, note="")
        if not self.console.is_terminal:
            self.console.print(f"{left} cells to compute, {known} known, {slots} at a time", highlight=False)

    def advanced(self, policy: SchedulingPolicy, cell: Cell, outcome: Outcome) -> None:
        """See `harness.engine.scheduler.ProgressListener`."""
        self.times[cell.stage].append(outcome.seconds)
        remaining = policy.remaining()
        self.done += 1
        total = self.done + remaining.total()
        where = f"{cell.task.label} β={cell.steering.beta:g} {cell.stage}"
        note = self._note(remaining)
        self.bar.update(self.task, completed=self.done, total=total, description=where, note=note)
        if not self.console.is_terminal and (monotonic() - self.printed_at > LINE_EVERY or not remaining):
            self.printed_at = monotonic()
            self.console.print(f"{self.done}/{total} cells, {note}; last {where}", highlight=False, soft_wrap=True)

    def failed(self, label: str, error: ModelError) -> None:
        """See `harness.engine.scheduler.ProgressListener`."""
        self.console.print(Text(f"{label}: {error}", style="red"), soft_wrap=True)

    def _note(self, remaining: dict[str, int]) -> str:
        finished = sum(map(len, self.times.values()))
        rate = finished / max(monotonic() - self.started_at, 1e-9)
        usual = sum(map(sum, self.times.values())) / finished
        means = {stage: sum(times) / len(times) for stage, times in self.times.items()}
        left = sum(count * means.get(stage, usual) for stage, count in remaining.items()) / self.slots
        return f"{rate:.2g}/s, {_duration(left)} left"


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
