"""The test of the whole procedure, against a slow and plain one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from harness.analysis.score_interval import Critical, tango
from harness.analysis.selection import CrossValidation, Scored, choose, selection_sets
from harness.analysis.selection_inference import of_procedure
from harness.analysis.statistics import mcnemar, paired, random_signs
from harness.api.records import BASELINE, Steering


def table(
    seed: int, n: int = 60, effect: float = 0.0, betas: Sequence[float] = (0.9, 0.8, 0.7)
) -> tuple[list[Scored], np.ndarray]:
    rng = np.random.default_rng(seed)
    easy = rng.standard_normal(n)
    shares = [0.0, *[effect] * len(betas)]
    robust = [(0.7 * easy + 0.7 * rng.standard_normal(n) < share).astype(np.float32) for share in shares]
    steerings = [BASELINE, *map(Steering, betas)]
    clean = [(rng.random(n) < 0.95).astype(np.float32) for _ in steerings]
    return [Scored(*row) for row in zip(steerings, clean, robust, strict=True)], rng.integers(0, 3, n)


def slow_standardised(grid: list[Scored], sets: Sequence[tuple[np.ndarray, np.ndarray]], signs: np.ndarray) -> float:
    """The procedure by its definition, on a table whose differences from the baseline have been flipped."""
    flipped = [
        Scored(scored.steering, scored.clean, grid[0].robust + signs * (scored.robust - grid[0].robust))
        for scored in grid
    ]
    gained = lost = 0
    for chosen_on, reported_on in sets:
        winner = max(
            flipped,
            key=lambda scored: (
                scored.robust[chosen_on].sum(),
                scored.clean[chosen_on].sum(),
                scored.steering.beta,
            ),
        )
        difference = (winner.robust - flipped[0].robust)[reported_on]
        gained, lost = gained + int((difference > 0).sum()), lost + int((difference < 0).sum())
    return float((gained - lost) / max(1, gained + lost) ** 0.5)


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_procedure_repeated(seed: int) -> None:
    """p: twice the smaller tail of 150 tables, or McNemar's where that is larger; the interval has the same limits."""
    grid, labels = table(seed, effect=0.3 * (seed % 3))
    sets = selection_sets(CrossValidation(folds=4), labels, seed)
    found = of_procedure(grid, sets, seed, repeats=150)
    signs = np.concatenate(list(random_signs(np.random.default_rng(seed), 150, len(labels))))
    own = slow_standardised(grid, sets, np.ones(len(labels)))
    tables = np.sort([*(slow_standardised(grid, sets, row) for row in signs), own])
    tail = min((tables >= own - 1e-9).mean(), (tables <= own + 1e-9).mean())
    by_mcnemar = mcnemar(found.gained, found.lost)
    assert own == pytest.approx((found.gained - found.lost) / max(1, found.gained + found.lost) ** 0.5)
    assert found.p_value == pytest.approx(min(1, max(2 * tail, by_mcnemar)))
    chosen = choose(CrossValidation(folds=4), grid, labels, seed).scores(grid)[1]
    n, plain = len(labels), paired(grid[0].robust, chosen)
    limits = Critical(max(1.96, tables[-4]), max(1.96, -tables[3]))  # of 151, the fourth has a share above 2.5 %
    low, high = tango(plain.gained, plain.lost, n, limits)
    assert found.low == pytest.approx(min(low, plain.low), abs=1e-4)
    assert found.high >= max(high, plain.high) - 1e-4


def test_an_interval_excludes_0_exactly_where_p_is_below_5_percent() -> None:
    significant = 0
    for seed in range(120):
        grid, labels = table(seed, n=(16, 60, 200)[seed % 3], effect=(-0.4, 0.4, 0.8)[seed // 3 % 3])
        found = of_procedure(grid, selection_sets(CrossValidation(folds=5), labels, seed), seed, repeats=199)
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0), seed
        significant += found.p_value < 0.05
    assert 10 < significant < 110


def test_luck_of_the_choice_asks_for_more_than_mcnemar() -> None:
    """With 40 β without an effect, the limit for a gain is above the normal one, and no lower than that for a loss."""
    grid, labels = table(5, n=400, betas=[round(0.99 - 0.02 * k, 2) for k in range(40)])
    sets = selection_sets(CrossValidation(folds=5), labels, 0)
    found = of_procedure(grid, sets, 0)
    assert found.p_value >= mcnemar(found.gained, found.lost)
    assert found.high - found.low > tango(found.gained, found.lost, 400, Critical(1.96, 1.96))[1] - found.delta


def test_a_gain_that_only_the_other_folds_see_is_inside_the_interval() -> None:
    """One image speaks for β = 0.9; the fold that reports it was without it and chose the baseline: none gained."""
    first, second = np.zeros(50, np.float32), np.zeros(50, np.float32)
    second[7] = 1
    grid = [Scored(BASELINE, np.ones(50), first), Scored(Steering(0.9), np.ones(50), second)]
    labels = np.zeros(50, int)
    found = of_procedure(grid, selection_sets(CrossValidation(folds=5), labels, 0), 0, repeats=199)
    assert (found.gained, found.lost, found.delta) == (0, 0, 0)
    assert found.high == paired(first, second).high > 0.1
    assert found.low == paired(first, first).low


def test_it_reports_what_the_choice_reports() -> None:
    grid, labels = table(3, n=200, effect=0.2)
    selection = CrossValidation(folds=5)
    sets = selection_sets(selection, labels, 0)
    choice = choose(selection, grid, labels, 0)
    plain = paired(grid[0].robust, choice.scores(grid)[1])
    found = of_procedure(grid, sets, 0)
    assert found.delta == pytest.approx(plain.delta)
    assert (found.gained, found.lost) == (plain.gained, plain.lost)


def test_one_seed_one_answer() -> None:
    grid, labels = table(1)
    sets = selection_sets(CrossValidation(folds=5), labels, 0)
    assert of_procedure(grid, sets, 4) == of_procedure(grid, sets, 4)


def test_nothing_but_the_baseline_gains_nothing_that_so_few_images_could_show() -> None:
    grid, labels = table(2)
    found = of_procedure(grid[:1], selection_sets(CrossValidation(folds=5), labels, 0), 0)
    of_none = 1.96**2 / (60 + 1.96**2)  # the upper end of Wilson's interval for none of 60
    assert (found.delta, found.p_value) == (0, 1)
    assert (found.low, found.high) == pytest.approx((-of_none, of_none), abs=1e-4)
