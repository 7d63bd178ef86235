"""What came out for a model, in a sentence: the number, and whether it is evidence of anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from harness.analysis.metrics import METRICS, Metric, of_row, spoken
from harness.leaderboard.csv_file import IN_SAMPLE
from harness.report import curves

ALPHA = 0.05
"""A headline whose p is below this is evidence."""

Row = Mapping[Any, Any]
HeadlineVerdict = Literal["gain", "loss", "neither", "untrusted", "failed"]
WORDS: Mapping[HeadlineVerdict, str] = {
    "gain": "Evidence of a gain", "loss": "Evidence of a loss", "neither": "No evidence of a gain or a loss",
    "untrusted": "Not to be trusted", "failed": "Not scored",
}  # fmt: skip
SHORT: Mapping[HeadlineVerdict, str] = {
    "gain": "gain", "loss": "loss", "neither": "without evidence", "untrusted": "not to be trusted",
    "failed": "not scored",
}  # fmt: skip


class ModelVerdict(NamedTuple):
    """What came out for one model.

    Args:
        gain: at the selected β, in hundredths of the metric, so in points of an accuracy; None where there is no score.
        sentence: how β was chosen, and the numbers.
        plain: what that means.
    """

    model: str
    verdict: HeadlineVerdict
    gain: float | None
    sentence: str
    plain: str
    metric: Metric = METRICS["class"]

    @property
    def word(self) -> str:
        """The verdict, short."""
        return WORDS[self.verdict]

    @property
    def points(self) -> str:
        """The gain, such as +4.0; empty where there is none."""
        return "" if self.gain is None else _read(self.metric, self.gain)

    @property
    def unit(self) -> str:
        """Of the gain."""
        return unit(self.metric)


def model_verdict(model: str, rows: Sequence[Row]) -> ModelVerdict:
    """The headline of a model in a sentence, and what it means in plain words."""
    if why := curves.failure(rows):
        return ModelVerdict(model, "failed", None, f"No score: {why}", "The other models are not touched by this.")
    headlines = [row for row in rows if row["status"] in curves.HEADLINES]
    if not headlines:
        return ModelVerdict(model, "neither", None, "No β was selected.", "Nothing is claimed.")
    row = headlines[0]
    metric = of_row(row)
    p_value = "p < 0.001" if row["p_value"] < 0.001 else f"p = {row['p_value']:.2g}"
    sentence = (
        f"β = {_chosen(row)}, {_procedure(str(row['selection']))}: {gain(row, row['delta_pp'])} {unit(metric)}, "
        f"95 % {gain(row, row['delta_low'])} … {gain(row, row['delta_high'])}, "
        f"{row['gained']:.0f} gained, {row['lost']:.0f} lost, {p_value}"
    )
    found = verdict(row)
    flags = str(row["flags"]).replace(";", ", ")
    doubt = f" The row is flagged ({flags}): read what that means before believing its numbers." if flags else ""
    return ModelVerdict(model, found, float(row["delta_pp"]), sentence, _plain(found, row, rows) + doubt, metric)


def verdict(row: Row) -> HeadlineVerdict:
    """What a headline is evidence of: nothing where β was chosen on the images that it is reported on."""
    if row["status"] == IN_SAMPLE:
        return "untrusted"
    if row["p_value"] >= ALPHA:
        return "neither"
    return "gain" if of_row(row).sign * row["delta_pp"] > 0 else "loss"


def _plain(found: HeadlineVerdict, row: Row, rows: Sequence[Row]) -> str:
    n = f"{row['n']:.0f} images"
    untouched = curves.baseline_of(str(row["model"]), rows)["beta"]
    if set(curves.chosen(row)) == {untouched}:
        return f"The untouched network (β = {untouched:g}) was the best, so steering neither gains nor loses anything."
    better, worse = ("more robust", "less robust") if curves.is_attacked(row) else ("better", "worse")
    return {
        "gain": f"Chance alone hardly explains it: on these {n}, steering makes the network {better}.",
        "loss": f"Chance alone hardly explains it: on these {n}, steering makes the network {worse}.",
        "neither": f"On {n} chance alone may explain the difference; more images would tell.",
        "untrusted": (
            "β was chosen on the very images that it is reported on, which shows a gain where there is none: this is "
            "no evidence. A selection on other images (cross-validation, holdout) would tell."
        ),
    }[found]


def _chosen(row: Row) -> str:
    """β of all folds, or each with its folds, the most frequent first."""
    folds = Counter(text.replace("/", ", c = ") for text in str(row["chosen"]).split(";"))
    if len(folds) == 1:
        return next(iter(folds))
    return ", ".join(f"{text} ({count} of {folds.total()} folds)" for text, count in folds.most_common())


def _procedure(selection: str) -> str:
    kind, _, setting = selection.partition(":")
    if kind == "holdout":
        return f"chosen on {100 * float(setting):g} % of the images and reported on the others"
    words = {
        "cross_validation": "cross-validated",
        "none": "chosen in-sample",
        "training": "cross-validated on the training images",
    }
    return words.get(kind, selection)


def gain(row: Row, hundredths: float) -> str:
    """A difference of a row's metric, as people read it: points of an accuracy, an error as such."""
    return _read(of_row(row), hundredths)


def unit(metric: Metric) -> str:
    """What a difference is counted in."""
    return "points" if metric.is_share else spoken(metric)


def _read(metric: Metric, hundredths: float) -> str:
    points = metric.points(hundredths)
    return signed(points) if metric.is_share else f"{points + 0.0:+{metric.form}}".replace("-", "−")


def signed(points: float, digits: int = 1) -> str:
    """Points with their sign, the minus as long as the plus; never −0.0."""
    return f"{round(points, digits) + 0.0:+.{digits}f}".replace("-", "−")
