"""The result for a model in a sentence: the number, and whether it is evidence of anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from harness.analysis.metrics import METRICS, Metric
from harness.leaderboard.flags import MASKING
from harness.leaderboard.row import LeaderboardRow, baseline_of, known
from harness.report.formats import difference, difference_interval, p_value, unit
from harness.report.placement import placement

ALPHA = 0.05
"""A headline whose p, adjusted over the models of the board, is below this is evidence."""

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
    """The result for one model.

    Args:
        model: label of the model.
        verdict: what the headline is evidence of.
        gain: difference at the selected β, in hundredths of the metric, so in points of an accuracy; None where there
            is no score.
        sentence: how β was chosen, and the numbers.
        plain: what that means.
        metric: what is measured.
    """

    model: str
    verdict: HeadlineVerdict
    gain: float | None
    sentence: str
    plain: str
    metric: Metric = METRICS["class"]

    @property
    def word(self) -> str:
        """The verdict in a few words."""
        return WORDS[self.verdict]

    @property
    def points(self) -> str:
        """The gain, such as +4.0; empty where there is none."""
        return "" if self.gain is None else difference(self.metric, self.gain)

    @property
    def unit(self) -> str:
        """Unit of the gain."""
        return unit(self.metric)


def model_verdict(rows: Sequence[LeaderboardRow]) -> ModelVerdict:
    """Put the headline of one model into a sentence, and its meaning into plain words.

    Args:
        rows: all rows of the model, at least one.
    """
    model = rows[0].model
    if rows[0].kind == "failed":
        return ModelVerdict(model, "failed", None, f"No score: {rows[0].failure}", "The other models are not affected.")
    row = next((row for row in rows if row.is_headline), None)
    if row is None:
        return ModelVerdict(model, "neither", None, "No β was selected.", "Nothing is claimed.")
    delta = known(row.delta_pp)
    sentence = (
        f"β = {_chosen(row)}, {_procedure(row.selection)}: {difference(row.metric, delta)} {unit(row.metric)}, "
        f"95 % {difference_interval(row.metric, known(row.delta_low), known(row.delta_high))}, "
        f"{row.gained} gained, {row.lost} lost, {_p_values(known(row.p_value), known(row.p_holm))}"
    )
    verdict = headline_verdict(row)
    doubt = (
        f" The row is flagged ({', '.join(row.flags)}): read what that means before believing its numbers."
        if row.flags else ""
    )  # fmt: skip
    note = f" {found}" if (found := placement(rows)) else ""
    return ModelVerdict(model, verdict, delta, sentence, _plain(verdict, row, rows) + doubt + note, row.metric)


def headline_verdict(row: LeaderboardRow) -> HeadlineVerdict:
    """Tell what a headline is evidence of.

    Nothing where β was chosen on the images that it is reported on, or where gradients may be masked.
    """
    if row.kind in ("in_sample", "untrusted"):
        return "untrusted"
    if known(row.p_holm) >= ALPHA:
        return "neither"
    return "gain" if row.metric.sign * known(row.delta_pp) > 0 else "loss"


def _plain(verdict: HeadlineVerdict, row: LeaderboardRow, rows: Sequence[LeaderboardRow]) -> str:
    n = f"{row.n} images"
    untouched = known(baseline_of(rows).beta)
    if row.kind == "untrusted":
        raised = [flag for flag in row.flags if flag in MASKING]
        return (
            f"Signs of gradient masking ({', '.join(raised)}) at the untouched network or at a chosen β: the attack "
            "may be blind there, so that the difference is no evidence. A stronger or an adaptive attack would tell."
        )
    if set(row.chosen_betas) == {untouched}:
        where = f"these {n}" if row.selection.startswith("cross_validation") else "the images that β was chosen on"
        return f"On {where} no steering did better than the untouched network (β = {untouched:g})."
    better, worse = ("more robust", "less robust") if row.is_attacked else ("better", "worse")
    one_of_many = " with as many models tested" if known(row.p_value) < ALPHA else ""
    return {
        "gain": f"Chance alone hardly explains it: on these {n}, steering makes the network {better}.",
        "loss": f"Chance alone hardly explains it: on these {n}, steering makes the network {worse}.",
        "neither": f"On {n}{one_of_many} chance alone may explain the difference; more images would tell.",
        "untrusted": (
            "β was chosen on the very images that it is reported on, which shows a gain where there is none: this is "
            "no evidence. A selection on other images (cross-validation, holdout) would tell."
        ),
    }[verdict]


def _p_values(p: float, p_holm: float) -> str:
    """Return p, and beside it the adjusted one where the board has several models."""

    def told(value: float) -> str:
        return "< 0.001" if value < 0.001 else f"= {p_value(value)}"

    adjusted = told(p_holm).removeprefix("= ")
    return f"p {told(p)}" if p == p_holm else f"p {told(p)} ({adjusted} over the models, Holm)"


def _chosen(row: LeaderboardRow) -> str:
    """β of all folds, or each with its number of folds, the most frequent first."""
    folds = Counter(text.replace("/", ", c = ") for text in row.chosen)
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
