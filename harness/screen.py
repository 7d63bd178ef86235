"""What the terminal shows: progress while a benchmark runs, and tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from harness.errors import ModelError
    from harness.execute import State
    from harness.types import Cell, Outcome

EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal to draw a bar on."""


class Ticker:
    """Shows how far a run is, how fast it goes and how long it will take; on stderr, so that stdout is the result.

    The time left is the sum over the cells that remain, each at the mean time of its stage so far: Square takes
    many times longer than APGD, so a share of the cells would be a poor guess.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cells"),
            TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.slots = 1
        self.times: dict[str, list[float]] = defaultdict(list)
        self.since = self.told = monotonic()

    def __enter__(self) -> Ticker:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def started(self, state: State, slots: int) -> None:
        """See `harness.execute.Observer`."""
        self.slots = slots
        self.since = self.told = monotonic()
        left = state.remaining().total()
        known = state.total - left
        self.task = self.bar.add_task("starting", total=state.total, completed=known, note="")
        if not self.console.is_terminal:
            self.console.print(f"{left} cells to compute, {known} known, {slots} at a time", highlight=False)

    def advanced(self, state: State, cell: Cell, outcome: Outcome) -> None:
        """See `harness.execute.Observer`."""
        self.times[cell.stage].append(outcome.seconds)
        remaining = state.remaining()
        completed = state.total - remaining.total()
        where = f"{cell.task.label} β={cell.steering.beta:g} {cell.stage}"
        note = self._note(remaining)
        self.bar.update(self.task, completed=completed, description=where, note=note)
        if not self.console.is_terminal and (monotonic() - self.told > EVERY or not remaining):
            self.told = monotonic()
            self.console.print(
                f"{completed}/{state.total} cells, {note}; last {where}", highlight=False, soft_wrap=True
            )

    def failed(self, label: str, error: ModelError) -> None:
        """See `harness.execute.Observer`."""
        self.console.print(Text(f"{label}: {error}", style="red"), soft_wrap=True)

    def _note(self, remaining: dict[str, int]) -> str:
        finished = sum(map(len, self.times.values()))
        rate = finished / max(monotonic() - self.since, 1e-9)
        usual = sum(map(sum, self.times.values())) / finished
        means = {stage: sum(times) / len(times) for stage, times in self.times.items()}
        left = sum(count * means.get(stage, usual) for stage, count in remaining.items()) / self.slots
        return f"{rate:.2g}/s, {_duration(left)} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def print_board(table: pd.DataFrame, title: str) -> None:
    """The leaderboard, in the columns that a reader wants first."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    view = Table(title=title, title_justify="left", title_style="bold")
    for name, justify in (
        ("rank", "right"), ("model", "left"), ("β", "right"), ("c", "right"), ("clean", "right"), ("robust", "right"),
        ("95 %", "left"), ("Δ pp", "right"), ("steered", "right"), ("flags", "left"),
    ):  # fmt: skip
        view.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    failures = []
    for row in table.to_dict("records"):
        if str(row["status"]).startswith("failed"):
            failures.append(Text(f"{row['model']}: {row['status']}", style="red"))
            continue
        baseline = row["beta"] == 1.0
        view.add_row(
            f"{row['rank']:.0f}",
            Text(str(row["model"])),
            f"{row['beta']:g}",
            "–" if baseline else f"{row['c']:g}",
            f"{100 * row['clean']:.1f}",
            f"{100 * row['robust']:.1f}",
            f"{100 * row['robust_low']:.1f} – {100 * row['robust_high']:.1f}",
            "baseline" if baseline else f"{row['delta_pp']:+.1f}",
            f"{row['steered']:.0f}/{row['sites']:.0f}",
            Text(str(row["flags"])),
            style="bold" if baseline else None,
        )
    console.print(view)
    for failure in failures:
        console.print(failure, soft_wrap=True)


def print_names(names: Mapping[str, Sequence[str]]) -> None:
    """Names under their headings."""
    console = Console()
    for heading, words in names.items():
        console.print(Text(f"\n{heading} ({len(words)})", style="bold"))
        console.print(Text(", ".join(words)))


def print_parts(group: str, rows: list[tuple[str, str, str]]) -> None:
    """What can be named in a YAML: kind, keys and where it comes from."""
    view = Table(title=group, title_justify="left", title_style="bold")
    for name in ("kind", "keys", "what it is"):
        view.add_column(name, overflow="fold")
    for row in rows:
        view.add_row(*map(Text, row))
    Console().print(view)
