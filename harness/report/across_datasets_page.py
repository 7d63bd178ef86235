"""Several boards summed up, as one page and as cells for the terminal: means, and the datasets behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from harness.leaderboard import flags
from harness.leaderboard.across_datasets import AcrossDatasets, DatasetGain, MethodSummary, SettingSummary
from harness.leaderboard.row import CT, LINEAR_PROBE
from harness.report.formats import NONE, count_range, p_value, signed, signed_interval
from harness.report.html import render


def headings(summary: SettingSummary) -> tuple[str, ...]:
    """Return the headings of `cells`; the first two columns are text."""
    return (
        "model", "method", "sets", _baseline(summary), "accuracy", "Δ pp", "95 % over sets", "won/tied/lost",
        "p (sign)", "relative gain %", "trained",
    )  # fmt: skip


def cells(method: MethodSummary) -> tuple[str, ...]:
    """Return the texts of one method; a dash where there is no number."""
    return (
        method.model,
        method.method,
        str(method.sets) if method.sets == method.of else f"{method.sets} of {method.of}",
        f"{method.baseline:.2f}",
        f"{method.accuracy:.2f}",
        signed(method.delta, 2),
        NONE if method.low is None or method.high is None else signed_interval(method.low, method.high, 2),
        f"{method.won}/{method.tied}/{method.lost}",
        p_value(method.p_value),
        NONE if method.relative is None else signed(method.relative, 2),
        "" if method.trained is None else count_range(method.trained),
    )


class DatasetLine(NamedTuple):
    """One model on one dataset.

    Args:
        model: label of the model.
        dataset: label of the dataset.
        board: name of the board.
        flags: flags of the rows.
        cells: texts under the headings of `datasets_behind`.
    """

    model: str
    dataset: str
    board: str
    flags: tuple[str, ...]
    cells: tuple[str, ...]


def datasets_behind(summary: SettingSummary) -> tuple[tuple[str, ...], tuple[DatasetLine, ...]]:
    """Return the datasets behind the means: the headings, then a line for each model, dataset and board."""
    others = list(dict.fromkeys(method.method for method in summary.methods if method.method != CT))
    found: dict[tuple[str, str, str], dict[str, DatasetGain]] = {}
    for gain in summary.gains:
        found.setdefault((gain.model, gain.images, gain.board), {})[gain.method] = gain
    heads = (_baseline(summary), "selected", "Δ", "95 % of Δ", "p", *(f"Δ {method}" for method in others))
    return heads, tuple(_line(found[key], others) for key in sorted(found))


def _line(by_method: Mapping[str, DatasetGain], others: Sequence[str]) -> DatasetLine:
    headline = by_method.get(CT)
    one = headline or next(iter(by_method.values()))
    of_headline = ("", "", "", "") if headline is None else (
        f"{headline.accuracy:.1f}", signed(headline.delta), signed_interval(headline.low, headline.high),
        p_value(headline.p_value),
    )  # fmt: skip
    deltas = (signed(by_method[method].delta) if method in by_method else NONE for method in others)
    raised = tuple(dict.fromkeys(flag for gain in by_method.values() for flag in gain.flags))
    return DatasetLine(one.model, one.dataset, one.board, raised, (f"{one.baseline:.1f}", *of_headline, *deltas))


def _baseline(summary: SettingSummary) -> str:
    return "probe" if summary.setting.baseline == LINEAR_PROBE else summary.setting.baseline


def page(found: AcrossDatasets, links: Mapping[str, str] | None = None, pages: Mapping[str, str] | None = None) -> str:
    """Return the boards summed up as one page that needs no network.

    Args:
        found: boards summed up, from `harness.leaderboard.across_datasets.sum_up`.
        links: names and addresses of further pages, where the page is part of a site.
        pages: addresses of the boards' own pages by their names, likewise.
    """
    return render(
        "across_datasets.html.j2",
        settings=[
            (one.setting.title, headings(one), [cells(method) for method in one.methods], *datasets_behind(one))
            for one in found.settings
        ],
        left_out=found.left_out,
        links=links or {},
        pages=pages or {},
        flags=flags.explained(flag for one in found.settings for gain in one.gains for flag in gain.flags),
    )
