"""A leaderboard as one page for people: what came out, in words and pictures, how far to trust it, how to repeat it.

`view` makes of a board what the page shows, and is pure; the templates hold the HTML. The page is one file that needs
no network, and has the same bytes each time.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.analysis.metrics import of_row, spoken
from harness.leaderboard import csv_file, outcomes
from harness.leaderboard.csv_file import CT, OWN, UNTOUCHED, Key, key_of, written
from harness.leaderboard.flags import explained
from harness.report import curves, plot
from harness.report.html import inlined, render
from harness.report.table import Column, Line, listed
from harness.report.verdict import ModelVerdict, model_verdict

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

FACTS = {
    "dataset": "images", "n": "how many", "data_sha256": "SHA-256 of the images", "metric": "metric",
    "threat": "threat", "eps": "ε", "attack": "attack", "protocol": "protocol", "family": "steered activations",
    "selection": "selection of β", "seed": "seed", "batch_size": "batch size",
    "ct_harness": "ct-harness", "torch": "torch", "device": "device",
}  # fmt: skip

Row = Mapping[Any, Any]


class Picture(NamedTuple):
    """A model's curves, and the same in words."""

    model: str
    svg: Markup
    words: str


@dataclass(frozen=True)
class View:
    """All that the page shows.

    Args:
        stages: the heading of the table of stages, then its rows; empty where no outcome file is there.
        flags: those that were met, with their meaning.
        facts: what is the same for all models.
        weights: each model's SHA-256.
        commands: what to type to repeat it.
        metric: in words.
        attacked: whether there is a threat.
        methods: whether other ways to adapt a network stand beside the steerings.
    """

    name: str
    question: str
    verdicts: tuple[ModelVerdict, ...]
    pictures: tuple[Picture, ...]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    stages: tuple[tuple[str, ...], ...]
    flags: Mapping[str, str]
    facts: Mapping[str, str]
    weights: Mapping[str, str]
    commands: tuple[str, ...]
    metric: str
    attacked: bool
    methods: bool


def view(name: str, table: pd.DataFrame, bits: pd.DataFrame | None, benchmark: bool) -> View:
    """What the page shows of a board.

    Args:
        name: of the board.
        table: the board.
        bits: the outcome file beside it, where there is one.
        benchmark: whether ``benchmarks/<name>.yaml`` is there.
    """
    rows = table.to_dict("records")
    columns, lines = listed(rows)
    met = (flag for row in rows for flag in str(row["flags"]).split(";") if flag)
    return View(
        name,
        question(rows),
        tuple(model_verdict(model, part) for model, part in curves.models(table).items()),
        tuple(_picture(number, panel) for number, panel in enumerate(curves.panels(table), start=1)),
        columns,
        lines,
        () if bits is None else staged(bits),
        explained(met),
        facts(rows),
        {model: str(part[0]["weights_sha256"]) for model, part in curves.models(table).items()},
        commands(name, benchmark),
        ", ".join(dict.fromkeys(spoken(of_row(row)) for row in rows)),
        any(map(curves.is_attacked, rows)),
        any(row["method"] not in (*OWN, "") for row in rows),
    )


def question(rows: Sequence[Row]) -> str:
    """What was asked, in a line: ``digits[:100] · Linf, ε = 0.1 · standard · n = 100``."""
    known = facts(rows)
    eps = f", ε = {known['ε']}" if "ε" in known else ""
    n = f"n = {known['how many']}" if "how many" in known else ""
    return " · ".join(filter(None, [known.get("images"), known.get("threat", "") + eps, known.get("attack"), n]))


def facts(rows: Sequence[Row]) -> dict[str, str]:
    """`FACTS` by their names, each with all values that the rows have; of the headline's images no account is taken."""
    found = {}
    for column, label in FACTS.items():
        counted = [row for row in rows if column != "n" or row["status"] not in curves.HEADLINES]
        values = dict.fromkeys(written(row[column], column) for row in counted)
        if text := ", ".join(filter(None, values)):
            found[label] = text
    return found


def staged(bits: pd.DataFrame) -> tuple[tuple[str, ...], ...]:
    """The accuracy in percent after each stage: the headings, then a row for each model and steering."""
    stages = list(dict.fromkeys(map(str, bits["stage"])))
    found: dict[Key, dict[str, str]] = {}
    for row in bits.to_dict("records"):
        found.setdefault(key_of(row), {})[str(row["stage"])] = _standing(str(row["outcomes"]))
    columns = {
        "model": True,
        "method": any(key.method not in (CT, UNTOUCHED) for key in found),
        "β": True,
        "c": len({key.c for key in found}) > 1,
    }
    shown = [name for name, wanted in columns.items() if wanted]
    lines = []
    for key, after in found.items():
        cells = {"model": key.model, "method": key.method, "β": f"{key.beta:g}", "c": f"{key.c:g}"}
        lines.append((*(cells[name] for name in shown), *(after.get(stage, "") for stage in stages)))
    return ((*shown, *stages), *lines)


def _standing(marks: str) -> str:
    """The share of images that stand or may stand, in percent; where answers are graded, their mean."""
    if set(marks) - set("01?"):
        mean = float(outcomes.values_of(marks).mean())
        read = f"{-mean:.4g}" if mean < 0 else f"{100 * mean:.1f}"  # an error, or a share
        return f"{('≥ ' if mean < 0 else '≤ ') if '?' in marks else ''}{read}"
    lost = marks.count("0")
    return f"{'≤ ' if '?' in marks else ''}{100 * (1 - lost / len(marks)):.1f}" if marks else ""


def commands(name: str, benchmark: bool) -> tuple[str, ...]:
    """What to type to compute the board again, and to hold a fresh run against it."""
    yaml = shlex.quote(f"benchmarks/{name}.yaml") if benchmark else "BENCHMARK.yaml"
    return (f"ct-harness run {yaml}", f"ct-harness check {yaml} --against {shlex.quote(f'leaderboards/{name}.csv')}")


def _picture(number: int, panel: curves.Panel) -> Picture:
    return Picture(panel.model, inlined(plot.svg(plot.draw([panel], titled=False)), f"m{number}-"), words(panel))


def words(panel: curves.Panel) -> str:
    """A model's curves in words, for those who do not see them."""
    points = [(point, curve.c) for curve in panel.curves for point in curve.robust]
    scored = [(point, c) for point, c in points if not point.bounded]
    pruned = [point.value for point, _ in points if point.bounded]

    metric = panel.metric
    unit = " %" if metric.is_share else ""

    def read(value: float) -> str:
        return f"{value:{metric.form}}{unit}"

    def at(point: curves.CurvePoint, c: float) -> str:
        return f"{read(point.value)} at β = {point.beta:g}" + (f", c = {c:g}" if len(panel.curves) > 1 else "")

    best, worst = (extreme(scored, key=lambda one: metric.sign * one[0].value) for extreme in (max, min))
    lowest = (
        f"{len(pruned)} steerings were given up, each at {read(max(pruned))} or less" if pruned
        else f"the worst is {at(*worst)}"
    )  # fmt: skip
    name = spoken(metric)
    what = f"Robust {name}" if panel.attacked else name.capitalize()
    clean = f" Clean {name} untouched: {read(panel.clean)}." if panel.attacked else ""
    others = "".join(f" {method}: {read(value)}." for method, value in panel.others.items())
    return (
        f"{what} of {panel.model} against β: {read(panel.robust)} untouched (β = {panel.baseline:g}); the best is "
        f"{at(*best)}; {lowest}.{clean}{others} The table below has every number."
    )


def report(board: Path, links: Mapping[str, str] | None = None) -> str:
    """The page of a board.

    Args:
        board: the CSV; its outcome file is looked for beside it, its benchmark in ``benchmarks`` beside its folder.
        links: names and addresses of what lies beside the page, where it is part of a site.

    Raises:
        LeaderboardError: the board or its outcome file is none.
    """
    benchmark = (board.resolve().parents[1] / "benchmarks" / f"{board.stem}.yaml").exists()
    shown = view(board.stem, csv_file.read(board), outcomes.read(board), benchmark)
    return render("report.html.j2", board=shown, links=links or {})
