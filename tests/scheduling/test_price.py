"""Price of a search, in passes, on smooth tables shaped like those of real networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from helpers.tables import Attacks, Table, attacks, run

from harness.analysis.selection import CrossValidation, Scored, better, selection_sets
from harness.api.records import Steering
from harness.api.trial import Answer, Trial
from harness.scheduling.grid import grid
from harness.scheduling.guided import GuidedSearch

IMAGES, CLASSES = 60, 6
FOOLED = 5
"""Passes of an attack that fools the network."""
SURVIVED = {"apgd-ce": 101, "apgd-t": 101, "fab-t": 200, "square": 5001}


def smooth_table(betas: int, seed: int) -> Table:
    """Return a table in which robustness rises and falls with β, and an image resists some attempts longer than others.

    Rankings change along β.
    """
    rng = np.random.default_rng(seed)
    steerings = grid(np.linspace(0.5, 0.99, betas - 1).tolist(), [0.5], "all")
    table = Table(Attacks(targets=3), steerings, tuple(range(IMAGES)), {})
    weakness = rng.normal(0.1, 1, IMAGES)
    slope, best = rng.normal(0, 0.5, IMAGES), rng.uniform(0.7, 0.85)
    logits, drift = rng.normal(0, 1, (IMAGES, CLASSES)), rng.normal(0, 1, (IMAGES, CLASSES))
    resists = {stage: abs(rng.normal(0, 0.1 * (k + 1), (IMAGES, CLASSES))) for k, stage in enumerate(SURVIVED)}
    for steering in steerings:
        away = steering.beta - best
        weak = weakness + slope * away + 2 * away**2
        rankings = np.argsort(-(logits + drift * steering.beta), axis=1)[:, :3].tolist()
        for image in table.images:
            margin = float(1 - 0.2 * weak[image])
            table.answers[steering, image] = Answer(float(weak[image] < 3), margin, tuple(rankings[image]))
            for trial in table.attempts(steering, image):
                if weak[image] > resists[trial.attempt.stage][image, trial.attempt.target]:
                    table.values[trial] = 0.0
    return table


def passes(table: Table, trial: Trial) -> int:
    return SURVIVED[trial.attempt.stage] if table.answer(trial).value else FOOLED


def autoattack(table: Table, steering: Steering) -> int:
    """Return the passes of one AutoAttack: every attempt until an image falls."""
    total = 0
    for image in table.images:
        for trial in table.attempts(steering, image) if table.answers[steering, image].value else ():
            total += passes(table, trial)
            if table.answer(trial).value == 0:
                break
    return total


@dataclass(frozen=True)
class Price:
    """What a search cost, in AutoAttack runs, and what it left.

    Args:
        finished: of the winners and the baseline, each in units of its own AutoAttack.
        losers: of each other steering, in units of the baseline's AutoAttack.
        gaps: images by which each bound is above the exact score.
    """

    finished: float
    losers: list[float]
    gaps: list[int]


def price_of(table: Table) -> Price:
    labels = np.arange(IMAGES) % 10
    sets = [where for where, _ in selection_sets(CrossValidation(folds=5), labels, 0)]
    search = GuidedSearch(table.threat, table.steerings, table.digests, sets, top=1)
    spent = dict.fromkeys(table.steerings, 0)
    for trials in attacks(run(search, table)):
        for trial in trials:
            spent[trial.steering] += passes(table, trial)
    exact = {steering: table.scored(steering) for steering in table.steerings}

    def winner(where: np.ndarray) -> Steering:
        on = (Scored(one, scored.clean[where], scored.robust[where]) for one, scored in exact.items())
        return min(on, key=better).steering

    must = {table.steerings[0], *(winner(where) for where in [np.arange(IMAGES), *sets])}
    runs = {one: autoattack(table, one) for one in must}
    return Price(
        sum(spent[one] for one in must) / sum(runs.values()),
        [spent[one] / runs[table.steerings[0]] for one in table.steerings if one not in must],
        [int(search.robust(one).sum() - scored.robust.sum()) for one, scored in exact.items()],
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_sweep_costs_its_winners_and_little_else_and_its_bounds_draw_the_curve(seed: int) -> None:
    price = price_of(smooth_table(31, seed))
    assert price.finished <= 1.02
    assert np.mean(price.losers) <= 0.01
    assert max(price.gaps) <= 3
    assert np.mean(price.gaps) <= 1


def test_a_grid_ten_times_as_fine_costs_hardly_more() -> None:
    coarse, fine = price_of(smooth_table(31, 0)), price_of(smooth_table(301, 0))
    assert sum(fine.losers) <= sum(coarse.losers) + 0.5
    assert max(fine.gaps) <= 2
