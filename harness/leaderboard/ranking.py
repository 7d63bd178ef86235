"""From the scores of each model to the ranked board: intervals, paired tests, Holm's correction, the headline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis.metrics import METRICS
from harness.analysis.selection import Scored, better
from harness.analysis.statistics import Paired, holm, interval, paired
from harness.api.records import Steering
from harness.curvature.smoothing import smoothing
from harness.errors import ModelError
from harness.leaderboard.flags import MASKING
from harness.leaderboard.row import BOUNDED, CT, FAILED, FORMATS, OK, SELECTED, UNTRUSTED, as_chosen
from harness.leaderboard.scores import Headline, ModelEntry, Score
from harness.util.text import cleaned

if TYPE_CHECKING:
    import pandas as pd

Columns = dict[str, object]
"""Values of some columns of a row; the others are empty."""


def board(entries: Iterable[ModelEntry]) -> pd.DataFrame:
    """Return the leaderboard: models in the benchmark's order; of each the headline, then its steerings, best first."""
    import pandas as pd

    found = list(entries)
    p_holm = _over_models(found)
    rows = [
        row for entry in found for row in (_failed(entry) if entry.failure else _scored(entry, p_holm.get(id(entry))))
    ]
    return pd.DataFrame(rows, columns=list(FORMATS))


def _over_models(entries: Sequence[ModelEntry]) -> dict[int, float]:
    """Adjust the p of the headlines by Holm over the models of the board, by the entries' identities."""
    headlines = {id(entry): entry.headline.gain.p_value for entry in entries if entry.headline}
    return dict(zip(headlines, holm(list(headlines.values())), strict=True))


def _scored(entry: ModelEntry, p_of_headline: float | None) -> list[Columns]:
    (baseline,) = (score for score in entry.scores if score.steering.is_baseline)
    ordered = sorted(entry.scores, key=_best_first)
    gains = {score.steering: paired(_like(score, baseline), score.robust) for score in ordered if score.complete}
    p_holm = _adjusted(gains, ordered)
    rows = [
        (
            _compared(entry, score, score.own, gains[score.steering], not score.steering.is_baseline)
            if score.complete
            else _bounded(entry, score)
        )
        | score.versions
        | dict(score.summary_columns)
        | {
            "rank": rank,
            "method": entry.method_of(score.steering),
            "trainable_parameters": entry.trainable[score.steering.method],
            "beta": score.steering.beta,
            "c": score.steering.c,
            "smoothing": _smoothing(entry, score.steering),
            "p_holm": p_holm.get(score.steering),
            "status": OK if score.complete else BOUNDED,
            "unit_test": score.unit_test,
            "flags": ";".join(sorted(score.flags)),
            "forward_passes": score.cost.forwards,
            "backward_passes": score.cost.backwards,
            "seconds": score.cost.seconds,
        }
        for rank, score in enumerate(ordered, start=1)
    ]
    rows += [_lost(entry, method, error) for method, error in entry.lost.items()]
    headline = [_headline(entry, entry.headline, baseline) | {"p_holm": p_of_headline}] if entry.headline else []
    return [*headline, *rows]


def _like(score: Score, baseline: Score) -> np.ndarray:
    """Return the baseline's robust scores to compare with, [n]; another method is shown no images of steerings."""
    return baseline.own if score.steering.method and baseline.own is not None else baseline.robust


def _best_first(score: Score) -> tuple[float, ...]:
    """Sort key; of equal accuracies one that is only a bound comes last."""
    robust, *rest = better(score)
    return (robust, not score.complete, *rest)


def _adjusted(gains: Mapping[Steering, Paired], scores: Sequence[Score]) -> dict[Steering, float]:
    """Adjust p by Holm over the steerings, and over the other methods; a pruned one counts with p = 1."""
    compared = [score.steering for score in scores if not score.steering.is_baseline]
    adjusted: dict[Steering, float] = {}
    for methods in (False, True):
        family = [steering for steering in compared if bool(steering.method) == methods]
        finished = {steering: gains[steering].p_value for steering in family if steering in gains}
        pruned = [1.0] * (len(family) - len(finished))
        adjusted |= zip(finished, holm([*finished.values(), *pruned]), strict=False)
    return adjusted


def _headline(entry: ModelEntry, headline: Headline, baseline: Score) -> Columns:
    """Report the procedure that chooses β, beside the baseline on the same images."""
    choice = headline.choice
    clean, robust = choice.scores(entry.scores)
    steerings = set(choice.chosen)
    used = [score for score in entry.scores if score.steering in steerings]
    attacked = [replace(score, robust=score.own) for score in used if score.own is not None]
    own = choice.scores(attacked)[1] if len(attacked) == len(used) else None
    raised = (baseline.flags & MASKING).union(*(score.flags for score in used))
    only = used[0].steering if len(used) == 1 else None
    return (
        _compared(entry, Scored(baseline.steering, clean, robust), own, headline.gain)
        | baseline.versions
        | {
            "method": CT,
            "trainable_parameters": entry.trainable[""],
            "weights_sha256": "+".join(sorted({score.versions["weights_sha256"] for score in used})),
            "beta": only.beta if only else None,
            "c": only.c if only else None,
            "smoothing": _smoothing(entry, only) if only else None,
            "status": UNTRUSTED if headline.status == SELECTED and raised & MASKING else headline.status,
            "selection": headline.name,
            "chosen": ";".join(as_chosen(steering.beta, steering.c) for steering in choice.chosen),
            "unit_test": min((one.unit_test for one in (baseline, *used) if one.unit_test is not None), default=None),
            "flags": ";".join(sorted(raised)),
        }
    )


def _compared(
    entry: ModelEntry, scored: Scored, own: np.ndarray | None, against: Paired, is_tested: bool = True
) -> Columns:
    """The numbers of a finished row, compared with the baseline on the same images; the baseline is not tested."""
    shown, ends = entry.metric.shown, entry.metric.interval
    low, high = ends(*interval(scored.robust, graded=entry.metric is not METRICS["class"]))
    delta_low, delta_high = ends(against.low, against.high)
    tested = {"delta_low": 100 * delta_low, "delta_high": 100 * delta_high, "p_value": against.p_value}
    return _bounded(entry, scored) | {
        "robust_low": low,
        "robust_high": high,
        "delta_pp": 100 * shown(against.delta),
        **(tested if is_tested else {}),
        "gained": against.gained,
        "lost": against.lost,
        "robust_aa": None if own is None else shown(float(own.mean(dtype=np.float64))),
    }


def _bounded(entry: ModelEntry, scored: Scored) -> Columns:
    """The numbers that a pruned row has too, its accuracies being upper bounds."""
    assert entry.coverage is not None
    return entry.shared | {
        "metric": entry.metric.name,
        "clean": entry.metric.shown(float(scored.clean.mean(dtype=np.float64))),
        "robust": entry.metric.shown(float(scored.robust.mean(dtype=np.float64))),
        "sites": entry.coverage.sites,
        "steered": entry.coverage.steered,
        "n": len(scored.robust),
    }


def _smoothing(entry: ModelEntry, steering: Steering) -> float | None:
    assert entry.coverage is not None
    return smoothing(steering.beta, entry.coverage.spread)


def _failed(entry: ModelEntry) -> list[Columns]:
    """The one row of a model without a score, with the reason."""
    return [{**entry.shared, "status": _reason(entry.failure), "flags": entry.flag or ""}]


def _lost(entry: ModelEntry, method: str, error: ModelError) -> Columns:
    """The row of another method without a score, with the reason."""
    shared = entry.shared | {"metric": entry.metric.name}
    return shared | {"method": method, "status": _reason(error), "flags": error.flag or ""}


def _reason(failure: object) -> str:
    return " ".join(cleaned(f"{FAILED}: {failure}").split())
