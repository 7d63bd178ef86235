"""What the terminal shows: progress while a benchmark runs, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.analysis.metrics import of_row
from harness.checks.zoo_coverage import SUMMED_UP, summed_up
from harness.leaderboard.across_datasets import cells
from harness.leaderboard.csv_file import BOUNDED, CT, FAILED, IN_SAMPLE, OWN, SELECTED
from harness.leaderboard.flags import MEANING
from harness.report.verdict import gain

if TYPE_CHECKING:
    import pandas as pd

    from harness.checks.findings import Finding
    from harness.checks.zoo_coverage import Audit
    from harness.leaderboard.across_datasets import AcrossDatasets
    from harness.leaderboard.compare import Comparison

FEW = 10
"""Rows that are shown one by one."""
WIDE = 180
"""Characters a line where there is no terminal to fit."""
HEADLINES = (SELECTED, IN_SAMPLE)


def print_board(table: pd.DataFrame, title: str) -> None:
    """The leaderboard, in the columns that a reader wants first; each model's headline above its grid."""
    failures, last, lines = [], None, []
    for row in table.to_dict("records"):
        if str(row["status"]).startswith(FAILED):
            failures.append(Text(f"{row['model']}: {row['status']}", style="red"))
            continue
        lines.append((last not in (None, row["model"]), row["status"] in HEADLINES, _view(row)))
        last = row["model"]
    shown = [name for name in VIEW if name not in SELDOM or any(line[name] for _, _, line in lines)]
    view = _table(title, *((name.removesuffix(" of Δ"), VIEW[name]) for name in shown))
    for new, bold, line in lines:
        if new:
            view.add_section()
        view.add_row(*(_text(line[name]) for name in shown), style="bold" if bold else None)
    console = _console()
    console.print(view)
    for failure in failures:
        console.print(failure, soft_wrap=True)


VIEW = {
    "rank": "right", "model": "left", "β": "right", "metric": "left", "clean": "right", "robust": "right",
    "95 %": "left", "Δ pp": "right", "Δ": "right", "95 % of Δ": "left", "+/−": "right", "p (Holm)": "right",
    "replay": "right", "steered": "right", "trained": "right", "flags": "left",
}  # fmt: skip
"""The columns, and the side that they lean to; both intervals are headed ``95 %``."""
SELDOM = frozenset({"metric", "robust", "Δ pp", "Δ", "replay", "trained"})
"""Those that are left out where no row fills them."""


def _view(row: Mapping[Any, Any]) -> dict[str, str]:
    headline = row["status"] in HEADLINES
    bounded = row["status"] == BOUNDED
    baseline = not (headline or bounded) and _missing(row["p_holm"])
    metric = of_row(row)
    at_most = "≤ " if bounded else ""
    p_value = row["p_value"] if headline else row["p_holm"]
    difference = "baseline" if baseline else "" if bounded else gain(row, row["delta_pp"])
    return {
        "rank": str(row["status"]) if headline else f"{row['rank']:.0f}",
        "model": str(row["model"]),
        "β": _adapted(row, baseline),
        "metric": "" if metric.name == "accuracy" else metric.name,
        "clean": f"{at_most}{metric.text(row['clean'])}",
        "robust": f"{at_most}{metric.text(row['robust'])}" if row["threat"] != "clean" else "",
        "95 %": "" if bounded else f"{metric.text(row['robust_low'])} … {metric.text(row['robust_high'])}",
        "Δ pp": difference if metric.is_share else "",
        "Δ": "" if metric.is_share else difference,
        "95 % of Δ": "" if baseline or bounded else f"{gain(row, row['delta_low'])} … {gain(row, row['delta_high'])}",
        "+/−": "" if baseline or bounded else f"{row['gained']:.0f}/{row['lost']:.0f}",
        "p (Holm)": "" if baseline else _number(p_value, ".2g"),
        "replay": "" if _missing(row["robust_replay"]) else metric.text(row["robust_replay"]),
        "steered": f"{row['steered']:.0f}/{row['sites']:.0f}",
        "trained": f"{row['trainable_parameters']:,.0f}" if _trains(row) else "",
        "flags": str(row["flags"]),
    }


def _trains(row: Mapping[Any, Any]) -> bool:
    return not _missing(row["trainable_parameters"]) and row["trainable_parameters"] > 0


def _adapted(row: Mapping[Any, Any], baseline: bool) -> str:
    """The steering, β of each fold, or another method."""
    if row["status"] in HEADLINES:
        return " ".join(row["chosen"].split(";"))
    if row["method"] not in OWN:
        return str(row["method"])
    usual = {"relu": 0.5, "smooth": 1.0}[row["family"]]
    return f"{row['beta']:g}" if baseline or row["c"] == usual else f"{row['beta']:g} c={row['c']:g}"


def _missing(value: Any) -> bool:
    return value is None or value != value  # noqa: PLR0124


def _number(value: Any, form: str) -> str:
    """Nothing where there is no number."""
    return "" if _missing(value) else f"{value:{form}}"


def _range(low: float, high: float, form: str) -> str:
    return f"{low:{form}} … {high:{form}}"


def _text(value: object) -> Text:
    return Text(str(value))  # not markup: a model's name may hold brackets


def _table(title: str, *columns: tuple[str, str]) -> Table:
    view = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name, justify in columns:
        view.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return view


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def print_flags(table: pd.DataFrame) -> None:
    """What each flag on the board means."""
    met = {flag for flags in table["flags"] for flag in str(flags).split(";") if flag}
    console = Console()
    for flag in sorted(met):
        meaning = MEANING.get(flag, "raised by a plug-in")
        console.print(Text.assemble((flag, "bold"), f": {meaning}"))


def print_within(rows: pd.DataFrame, title: str) -> None:
    """Each model's selected β against its baseline."""
    view = _table(
        title, ("model", "left"), ("β of each fold", "left"), ("baseline", "right"), ("selected", "right"),
        ("Δ pp", "right"), ("95 %", "left"), ("gained", "right"), ("lost", "right"), ("p", "right"), ("flags", "left"),
    )  # fmt: skip
    for row in rows.to_dict("records"):
        mark = " (in-sample)" if row["status"] == IN_SAMPLE else ""
        view.add_row(
            *map(_text, (
                row["model"], " ".join(row["chosen"].split(";")) + mark, of_row(row).text(row["baseline"]),
                of_row(row).text(row["robust"]), gain(row, row["delta_pp"]),
                f"{gain(row, row['delta_low'])} … {gain(row, row['delta_high'])}",
                f"{row['gained']:.0f}", f"{row['lost']:.0f}", f"{row['p_value']:.2g}", row["flags"],
            )),
        )  # fmt: skip
    _console().print(view)


def print_across_datasets(found: AcrossDatasets) -> None:
    """Several boards summed up, a table for each question; then what is left out."""
    console = _console()
    for group in found.groups:
        sides = ("left" if name in ("model", "method") else "right" for name in group.columns)
        view = _table(group.question.title, *zip(group.columns, sides, strict=True))
        last = group.rows[0].model
        for row in group.rows:
            if row.model != last:
                view.add_section()
            view.add_row(*map(_text, cells(row)), style="bold" if row.method == CT else None)
            last = row.model
        console.print(view)
    if found.groups:
        console.print(Text(RELATIVE), soft_wrap=True)
    for sentence in found.left_out:
        console.print(Text(f"left out: {sentence}"), soft_wrap=True)


RELATIVE = (
    "The relative gain is the paper's: it weights sets whose baseline is low, so read Δ and its interval instead."
)


def print_comparison(found: Comparison, title: str) -> None:
    """Two boards row by row, and in what they differ."""
    view = _table(
        title, ("model", "left"), ("method", "left"), ("β", "right"), ("c", "right"), ("clean pp", "right"),
        ("robust pp", "right"),
        ("95 %", "left"), ("gained", "right"), ("lost", "right"), ("p", "right"), ("test", "left"),
    )  # fmt: skip

    for row in found.rows.to_dict("records"):
        clean, robust, low, high = (
            "" if _missing(row[name]) else gain(row, row[name]) for name in ("clean_pp", "robust_pp", "low", "high")
        )
        view.add_row(
            *map(_text, (
                row["model"], row["method"], f"{row['beta']:g}", f"{row['c']:g}", clean, robust,
                f"{low} … {high}" if low else "", _number(row["gained"], ".0f"), _number(row["lost"], ".0f"),
                _number(row["p_value"], ".2g"),
                "" if _number(row["test"], "") == "" else row["test"],
            )),
        )  # fmt: skip
    console = _console()
    if len(found.rows):
        console.print(view)
    for sentence in found.differences:
        console.print(Text(f"differs: {sentence}"), soft_wrap=True)
    for where, keys in (("first", found.only_first), ("second", found.only_second)):
        for key in keys:
            console.print(Text(f"only in the {where}: {key.name}"), soft_wrap=True)


def print_findings(findings: Iterable[Finding]) -> bool:
    """Each as it comes, its remedy below, and the verdict last; whether none of them is a problem."""
    marks = {"ok": ("✓ ok     ", "green"), "warning": ("! warning", "yellow"), "problem": ("✗ problem", "red")}
    console = _console()
    met = dict.fromkeys(marks, 0)
    for finding in findings:
        met[finding.level] += 1
        mark, colour = marks[finding.level]
        text = f" {finding.check:8} {finding.subject}: {finding.text}"
        console.print(Text.assemble((mark, colour), text), soft_wrap=True)
        if finding.remedy:
            console.print(Text(f"{'':10}→ {finding.remedy}"), soft_wrap=True)
    verdict = "This benchmark is ready to run" if not met["problem"] else "Not ready: mend the problems first"
    numbers = ", ".join(f"{met[level]} {level}{'s' * (met[level] != 1)}" for level in ("problem", "warning"))
    console.print(Text(f"{verdict} ({numbers}). Nothing was downloaded: what is not here counts as missing."))
    return not met["problem"]


def print_coverage(rows: Sequence[Audit], title: str) -> None:
    """The entries, where there are few; then the boards summed up."""
    if len(rows) <= FEW:
        view = _table(
            title, ("board", "left"), ("model", "left"), ("activations", "left"), ("steered", "right"),
            ("by modules", "right"), ("smooth", "right"), ("CT applies", "left"),
        )  # fmt: skip
        for row in rows:
            counts = (f"{row.steered}/{row.sites}", f"{row.by_modules}/{row.sites}", row.smooth)
            told = (row.activations.replace(";", " "), *counts, row.applicability)
            view.add_row(*map(_text, (f"{row.dataset}/{row.threat}", row.model, *told)))
        _console().print(view)
        for row in rows:
            if row.builds != "yes":
                _console().print(_text(f"{row.dataset}/{row.threat} {row.model}: {row.builds}"), soft_wrap=True)
    else:
        view = _table(title, ("board", "left"), ("entries", "right"), *((name, "right") for name in SUMMED_UP))
        for summed in summed_up(rows):
            view.add_row(*map(_text, summed))
        _console().print(view)


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
