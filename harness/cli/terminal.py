"""Tables and findings on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.analysis.metrics import BY_NAME
from harness.leaderboard.flags import explained
from harness.leaderboard.row import CT, HEADLINES, LeaderboardRow, attack_runs, by_model, failures_of, known
from harness.report.formats import difference, difference_interval, p_value
from harness.report.placement import placement
from harness.report.table import (
    BASELINE,
    CHOICE,
    CLEAN,
    DELTA,
    DELTA_INTERVAL,
    DELTA_OR_BASELINE,
    FLAGS,
    GAINED,
    GAINED_AND_LOST,
    LOST,
    METRIC,
    MODEL,
    OWN_ATTACK,
    P_HOLM,
    P_VALUE,
    RANK_OR_STATUS,
    ROBUST,
    ROBUST_INTERVAL,
    SELECTED,
    STEERED,
    STEERING_OR_METHOD,
    TRAINED,
    TableColumn,
    filled,
    lines,
)
from harness.report.verdict import ALPHA

if TYPE_CHECKING:
    from harness.checks.findings import Finding
    from harness.checks.zoo_coverage import Audit
    from harness.leaderboard.across_datasets import AcrossDatasets
    from harness.leaderboard.compare import Comparison, RowComparison

FEW = 10
"""Entries of the zoo up to which each has a line of its own."""
WIDE = 180
"""Characters a line where there is no terminal to fit."""


def print_board(rows: Sequence[LeaderboardRow], title: str) -> None:
    """Print a leaderboard, each model's headline above its grid; then the models that failed."""
    scored = [row for row in rows if row.kind != "failed"]
    console = _console()
    if scored:
        console.print(_board(title, _board_columns(scored), scored))
        if any(row.p_holm is not None and row.p_holm >= ALPHA > known(row.p_value) for row in scored):
            console.print(Text(UNADJUSTED), soft_wrap=True)
    for model, own in by_model(scored).items():
        if (sentence := price(own)) is not None:
            console.print(f"{model}: {sentence}", highlight=False, soft_wrap=True)
        if note := placement(own):
            console.print(Text(f"{model}: {note}", style="yellow"), soft_wrap=True)
    for model, reason in failures_of(rows).items():
        console.print(Text(f"{model}: failed: {reason}", style="red"), soft_wrap=True)


UNADJUSTED = (
    "An interval of Δ is for its row alone. p (Holm) allows for the number of rows that are tested, so it can be "
    "0.05 or more where the interval excludes 0: that is no evidence."
)


def price(rows: Sequence[LeaderboardRow]) -> str | None:
    """Return what the rows of one model have cost, in runs of their attack; None where it is not known."""
    runs = attack_runs(rows)
    if runs is None:
        return None
    steerings = sum(not row.is_headline and row.kind != "failed" for row in rows)
    name = "AutoAttack" if rows[0].attack in ("standard", "plus", "rand") else "attack"
    return f"{steerings} steerings for the price of {runs:.1f} {name} runs"


def _board_columns(rows: Sequence[LeaderboardRow]) -> Sequence[TableColumn]:
    """Return the columns that a reader wants first; that of the flags even where it is empty."""
    delta = "Δ pp" if all(row.metric.is_share for row in rows) else "Δ"
    columns = (
        RANK_OR_STATUS, MODEL, STEERING_OR_METHOD, METRIC, CLEAN, ROBUST, ROBUST_INTERVAL,
        DELTA_OR_BASELINE._replace(heading=delta), DELTA_INTERVAL._replace(heading="95 %"), GAINED_AND_LOST,
        P_HOLM, OWN_ATTACK, STEERED, TRAINED,
    )  # fmt: skip
    return (*filled(columns, rows), FLAGS)


def print_within(rows: Sequence[LeaderboardRow], title: str) -> None:
    """Print each model's selected β against its baseline."""
    columns = (
        MODEL, CHOICE, BASELINE, SELECTED, DELTA._replace(heading="Δ pp"), DELTA_INTERVAL._replace(heading="95 %"),
        GAINED, LOST, P_VALUE, P_HOLM, FLAGS,
    )  # fmt: skip
    _console().print(_board(title, columns, [row for row in rows if row.is_headline], grid=False))


def _board(title: str, columns: Sequence[TableColumn], rows: Sequence[LeaderboardRow], grid: bool = True) -> Table:
    """Return the rows as a table; with their grid, headlines are bold and models apart."""
    shown = _table(title, *((column.heading, "right" if column.content == "number" else "left") for column in columns))
    found = lines(columns, rows)
    for line, following in pairwise((*found, None)):
        assert line is not None
        bold = grid and line.kind in HEADLINES
        shown.add_row(
            *(_text(cell.text) for cell in line.cells),
            style="bold" if bold else None,
            end_section=grid and following is not None and following.model != line.model,
        )
    return shown


def print_flags(rows: Sequence[LeaderboardRow]) -> None:
    """Explain the flags of a leaderboard."""
    console = Console()
    for flag, meaning in explained(flag for row in rows for flag in row.flags).items():
        console.print(Text.assemble((flag, "bold"), f": {meaning}"))


def print_across_datasets(found: AcrossDatasets) -> None:
    """Print several boards summed up, a table for each setting; then what is left out."""
    from harness.report.across_datasets_page import cells, headings

    console = _console()
    for summary in found.settings:
        names = headings(summary)
        sides = ("left" if name in ("model", "method") else "right" for name in names)
        table = _table(summary.setting.title, *zip(names, sides, strict=True))
        last = summary.methods[0].model
        for method in summary.methods:
            if method.model != last:
                table.add_section()
            table.add_row(*map(_text, cells(method)), style="bold" if method.method == CT else None)
            last = method.model
        console.print(table)
    if found.settings:
        console.print(Text(RELATIVE), soft_wrap=True)
    for sentence in found.left_out:
        console.print(Text(f"left out: {sentence}"), soft_wrap=True)


RELATIVE = (
    "The relative gain is the paper's: it weights datasets whose baseline is low, so read Δ and its interval instead."
)


def print_comparison(found: Comparison, title: str) -> None:
    """Print two boards row by row, and in what they differ."""
    table = _table(
        title, ("model", "left"), ("method", "left"), ("β", "right"), ("c", "right"), ("clean pp", "right"),
        ("robust pp", "right"), ("95 %", "left"), ("gained", "right"), ("lost", "right"), ("p", "right"),
        ("test", "left"),
    )  # fmt: skip
    for row in found.rows:
        table.add_row(*map(_text, _compared(row)))
    console = _console()
    if found.rows:
        console.print(table)
    for sentence in found.differences:
        console.print(Text(f"differs: {sentence}"), soft_wrap=True)
    for where, keys in (("first", found.only_first), ("second", found.only_second)):
        for key in keys:
            console.print(Text(f"only in the {where}: {key.name}"), soft_wrap=True)


def _compared(row: RowComparison) -> tuple[object, ...]:
    metric = BY_NAME[row.metric]
    robust = "" if row.robust_pp is None else difference(metric, row.robust_pp)
    interval = "" if row.low is None or row.high is None else difference_interval(metric, row.low, row.high)
    counts = ("" if number is None else number for number in (row.gained, row.lost))
    p = "" if row.p_value is None else p_value(row.p_value)
    clean = difference(metric, row.clean_pp)
    return row.model, row.method, f"{row.beta:g}", f"{row.c:g}", clean, robust, interval, *counts, p, row.test or ""


def print_findings(findings: Iterable[Finding]) -> bool:
    """Print each finding as it comes with its remedy, and the verdict last; return whether none is a problem."""
    marks = {"ok": ("✓ ok     ", "green"), "warning": ("! warning", "yellow"), "problem": ("✗ problem", "red")}
    console = _console()
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding.level] += 1
        mark, colour = marks[finding.level]
        text = f" {finding.check:8} {finding.subject}: {finding.text}"
        console.print(Text.assemble((mark, colour), text), soft_wrap=True)
        if finding.remedy:
            console.print(Text(f"{'':10}→ {finding.remedy}"), soft_wrap=True)
    verdict = "Not ready: fix these first" if counts["problem"] else "This benchmark is ready to run"
    numbers = ", ".join(f"{counts[level]} {level}{'s' * (counts[level] != 1)}" for level in ("problem", "warning"))
    console.print(Text(f"{verdict} ({numbers}). Nothing was downloaded: what is not here counts as missing."))
    return not counts["problem"]


def print_coverage(audits: Sequence[Audit], title: str) -> None:
    """Print the entries of the zoo where there are few, else the boards summed up."""
    from harness.report.zoo_summary import SUMMED_UP, summed_up

    if len(audits) > FEW:
        table = _table(title, ("board", "left"), ("entries", "right"), *((name, "right") for name in SUMMED_UP))
        for counts in summed_up(audits):
            table.add_row(*map(_text, counts))
        _console().print(table)
        return
    table = _table(
        title, ("board", "left"), ("model", "left"), ("activations", "left"), ("steered", "right"),
        ("by modules", "right"), ("smooth", "right"), ("CT applies", "left"),
    )  # fmt: skip
    for audit in audits:
        table.add_row(*map(_text, (
            f"{audit.dataset}/{audit.threat}", audit.model, audit.activations.replace(";", " "),
            f"{audit.steered}/{audit.sites}", f"{audit.by_modules}/{audit.sites}", audit.smooth, audit.applicability,
        )))  # fmt: skip
    _console().print(table)
    for audit in audits:
        if audit.builds != "yes":
            _console().print(_text(f"{audit.dataset}/{audit.threat} {audit.model}: {audit.builds}"), soft_wrap=True)


def print_names(names: Mapping[str, Sequence[str]]) -> None:
    """Print names under their headings."""
    console = Console()
    for heading, words in names.items():
        console.print(Text(f"\n{heading} ({len(words)})", style="bold"))
        console.print(Text(", ".join(words)))


def print_parts(group: str, parts: list[tuple[str, str, str]]) -> None:
    """Print the parts that a YAML can name: kind, keys, and description with their origin."""
    table = Table(title=group, title_justify="left", title_style="bold")
    for name in ("kind", "keys", "what it is"):
        table.add_column(name, overflow="fold")
    for part in parts:
        table.add_row(*map(Text, part))
    Console().print(table)


def _text(value: object) -> Text:
    """Return plain text without no-break spaces; no markup, since a model's name may hold brackets."""
    return Text(str(value).replace("\N{NO-BREAK SPACE}", " "))


def _table(title: str, *columns: tuple[str, str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name, justify in columns:
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)
