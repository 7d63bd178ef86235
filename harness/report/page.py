"""A leaderboard as one page for people: the result in words and pictures, how far to trust it, and how to repeat it.

`view` turns a board into the content of the page, and is pure; the templates hold the HTML. The page is one file that
needs no network, and the same board gives the same bytes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from harness.analysis.metrics import spoken
from harness.leaderboard import outcomes
from harness.leaderboard.board_files import StoredBoard
from harness.leaderboard.flags import explained
from harness.leaderboard.row import CT, UNTOUCHED, LeaderboardRow, by_model
from harness.report import curves, plot, table
from harness.report.formats import AT_LEAST, AT_MOST
from harness.report.html import inlined, render
from harness.report.verdict import ModelVerdict, model_verdict

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

FACTS = {
    "dataset": "images", "n": "how many", "data_sha256": "SHA-256 of the images", "metric": "metric",
    "threat": "threat", "eps": "ε", "attack": "attack", "protocol": "protocol", "family": "steered activations",
    "selection": "selection of β", "seed": "seed",
    "ct_harness": "ct-harness", "torch": "torch", "device": "device", "compiled": "attacked compiled",
}  # fmt: skip
"""The columns that say how the board was made, and their names on the page."""


class Picture(NamedTuple):
    """The curves of a model, and the same in words."""

    model: str
    svg: Markup
    words: str


@dataclass(frozen=True)
class View:
    """The content of the page.

    Args:
        name: name of the board.
        question: the benchmark in a line.
        verdicts: the result of each model.
        pictures: the curves of each model that was scored.
        columns: columns of the table that any row fills.
        lines: rows of the table.
        stages: headings of the table of stages, then its rows; empty where there is no outcome file.
        flags: flags that were raised, with their meaning.
        facts: what all models share, by name.
        weights: SHA-256 of the weights by model.
        commands: command lines that repeat the board.
        metric: the metric in words.
        attacked: whether there is a threat.
        methods: whether there are other methods beside the steerings.
    """

    name: str
    question: str
    verdicts: tuple[ModelVerdict, ...]
    pictures: tuple[Picture, ...]
    columns: tuple[table.TableColumn, ...]
    lines: tuple[table.TableLine, ...]
    stages: tuple[tuple[str, ...], ...]
    flags: Mapping[str, str]
    facts: Mapping[str, str]
    weights: Mapping[str, str]
    commands: tuple[str, ...]
    metric: str
    attacked: bool
    methods: bool


def view(name: str, rows: Sequence[LeaderboardRow], marks: pd.DataFrame | None, benchmark: bool) -> View:
    """Return the content of the page of a board.

    Args:
        name: name of the board.
        rows: rows of the board.
        marks: content of its outcome file; None where there is none.
        benchmark: whether ``benchmarks/<name>.yaml`` exists.
    """
    columns = table.filled(table.PAGE, rows)
    return View(
        name,
        question(rows),
        tuple(model_verdict(own) for own in by_model(rows).values()),
        tuple(_picture(number, panel) for number, panel in enumerate(curves.panels(rows), start=1)),
        columns,
        table.lines(columns, rows),
        () if marks is None else stage_table(marks),
        explained(flag for row in rows for flag in row.flags),
        facts(rows),
        {model: own[0].weights_sha256 for model, own in by_model(rows).items()},
        commands(name, benchmark),
        ", ".join(dict.fromkeys(spoken(row.metric) for row in rows)),
        any(row.is_attacked for row in rows),
        any(row.is_adapted for row in rows),
    )


def question(rows: Sequence[LeaderboardRow]) -> str:
    """Return the benchmark in a line: ``digits[:100] · Linf, ε = 0.1 · standard · n = 100``."""
    found = facts(rows)
    eps = f", ε = {found['ε']}" if "ε" in found else ""
    n = f"n = {found['how many']}" if "how many" in found else ""
    return " · ".join(filter(None, [found.get("images"), found.get("threat", "") + eps, found.get("attack"), n]))


def facts(rows: Sequence[LeaderboardRow]) -> dict[str, str]:
    """Return `FACTS` by their names, each with all values among the rows; headlines may be of fewer images."""
    found = {}
    for column, label in FACTS.items():
        values = dict.fromkeys(row.written(column) for row in rows if column != "n" or not row.is_headline)
        if text := ", ".join(filter(None, values)):
            found[label] = text
    return found


def stage_table(marks: pd.DataFrame) -> tuple[tuple[str, ...], ...]:
    """Return the accuracy in percent after each stage: the headings, then a row for each model and steering."""
    found = outcomes.stages(marks)
    names = list(dict.fromkeys(stage for texts in found.values() for stage in texts))
    columns = {
        "model": True,
        "method": any(key.method not in (CT, UNTOUCHED) for key in found),
        "β": True,
        "c": len({key.c for key in found}) > 1,
    }
    shown = [name for name, wanted in columns.items() if wanted]
    lines = []
    for key, texts in found.items():
        most = outcomes.most_of(texts)
        cells = {"model": key.model, "method": key.method, "β": f"{key.beta:g}", "c": f"{key.c:g}"}
        lines.append((*(cells[name] for name in shown), *(surviving(texts.get(name, ""), most) for name in names)))
    return ((*shown, *names), *lines)


def surviving(marks: str, most: float = 1.0) -> str:
    """Format the share of images that survive a stage, or may, in percent; the mean where answers are graded.

    Args:
        marks: outcomes as the outcome file has them.
        most: the highest score that an image can have: 0 where the metric is an error.
    """
    if marks and (most == 0 or set(marks) - set("01?")):
        mean = float(outcomes.values_of(marks, most).mean())
        text = f"{0 - mean:.4g}" if most == 0 else f"{100 * mean:.1f}"  # an error, or a share
        return f"{(AT_LEAST if most == 0 else AT_MOST) if '?' in marks else ''}{text}"
    fooled = marks.count("0")
    return f"{AT_MOST if '?' in marks else ''}{100 * (1 - fooled / len(marks)):.1f}" if marks else ""


def commands(name: str, benchmark: bool) -> tuple[str, ...]:
    """Return the command lines that compute the board again, and that hold a fresh run against it."""
    yaml = shlex.quote(f"benchmarks/{name}.yaml") if benchmark else "BENCHMARK.yaml"
    return (f"ct-harness run {yaml}", f"ct-harness check {yaml} --against {shlex.quote(f'leaderboards/{name}.csv')}")


def _picture(number: int, panel: curves.Panel) -> Picture:
    return Picture(panel.model, inlined(plot.svg(plot.draw([panel], titled=False)), f"m{number}-"), words(panel))


def words(panel: curves.Panel) -> str:
    """Describe the curves of a model, for readers who do not see them."""
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
        f"{len(pruned)} steerings were pruned, each at {read(max(pruned))} or less" if pruned
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


def report(board: StoredBoard, links: Mapping[str, str] | None = None) -> str:
    """Return the page of a board.

    Args:
        board: the board; its benchmark is looked for in ``benchmarks`` beside its directory.
        links: names and addresses of further pages and files, where the page is part of a site.
    """
    path = board.path
    benchmark = (path.resolve().parents[1] / "benchmarks" / f"{path.stem}.yaml").exists()
    shown = view(path.stem, board.rows, board.outcomes, benchmark)
    return render("report.html.j2", board=shown, links=links or {})
