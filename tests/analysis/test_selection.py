"""The choice of β that is not fooled: by brute force, by invariants, and by simulation."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.packages import script
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from harness.analysis.selection import CrossValidation, Holdout, InSample, Scored, better, choose, selection_sets
from harness.analysis.selection_inference import of_procedure
from harness.analysis.statistics import Paired
from harness.api.records import BASELINE, Steering

Table = tuple[list[Scored], np.ndarray, int]
"""Scores under each steering, labels of the images, and a seed."""


@st.composite
def tables(draw: st.DrawFn) -> Table:
    n = draw(st.integers(10, 40))
    count = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steerings = [BASELINE, *(Steering(round(0.9 - 0.1 * k, 1)) for k in range(count))]
    clean = (rng.random((len(steerings), n)) < 0.9).astype(np.float32)
    robust = clean * (rng.random((len(steerings), n)) < 0.6)
    grid = [Scored(s, c, r) for s, c, r in zip(steerings, clean, robust, strict=True)]
    return grid, rng.integers(0, 4, n), draw(st.integers(0, 99))


@settings(deadline=None)
@given(tables(), st.integers(2, 6))
def test_each_fold_is_reported_under_the_winner_of_the_others(table: Table, folds: int) -> None:
    grid, labels, seed = table
    choice = choose(CrossValidation(folds=folds), grid, labels, seed)
    assert np.array_equal(choice.reported, np.arange(len(labels)))
    clean, robust = choice.scores(grid)
    for steering, part in zip(choice.chosen, choice.parts, strict=True):
        others = np.setdiff1d(np.arange(len(labels)), part)
        best = max(
            grid,
            key=lambda scored: (
                scored.robust[others].sum(),
                scored.clean[others].sum(),
                scored.steering.beta,
                -abs(scored.steering.c - 0.5),
            ),
        )
        assert steering == best.steering
        assert np.array_equal(robust[part], best.robust[part])
        assert np.array_equal(clean[part], best.clean[part])


@given(tables(), st.integers(2, 6))
def test_folds_are_fixed_by_the_seed_stratified_and_blind_to_outcomes(table: Table, folds: int) -> None:
    _, labels, seed = table
    sets = selection_sets(CrossValidation(folds=folds), labels, seed)
    again = selection_sets(CrossValidation(folds=folds), labels, seed)
    assert all(
        np.array_equal(a, b) for one, two in zip(sets, again, strict=True) for a, b in zip(one, two, strict=True)
    )
    for label in np.unique(labels):
        sizes = [(labels[reported] == label).sum() for _, reported in sets]
        assert max(sizes) - min(sizes) <= 1
    assert not any(set(chosen) & set(reported) for chosen, reported in sets)


@given(tables(), st.floats(0.2, 0.8))
def test_holdout_reports_only_images_it_did_not_choose_on(table: Table, share: float) -> None:
    grid, labels, seed = table
    ((chosen_on, reported),) = selection_sets(Holdout(share=share), labels, seed)
    assert sorted([*chosen_on, *reported]) == list(range(len(labels)))
    assert abs(len(chosen_on) - share * len(labels)) <= 1
    for label in np.unique(labels):
        assert abs((labels[chosen_on] == label).sum() - share * (labels == label).sum()) <= 1
    choice = choose(Holdout(share=share), grid, labels, seed)
    assert np.array_equal(choice.reported, reported)


def test_in_sample_is_the_best_row() -> None:
    rng = np.random.default_rng(0)
    grid = [Scored(Steering(b), np.ones(50), rng.integers(0, 2, 50).astype(float)) for b in (1.0, 0.9, 0.8)]
    choice = choose(InSample(), grid, np.zeros(50), 0)
    assert choice.chosen == (min(grid, key=better).steering,)


def test_ties_go_to_the_baseline() -> None:
    same = np.array([1.0, 0, 1, 1, 0, 1])
    grid = [Scored(Steering(b), np.ones(6), same) for b in (0.5, 0.9)] + [Scored(BASELINE, np.ones(6), same)]
    assert set(choose(CrossValidation(folds=3), grid, np.zeros(6), 0).chosen) == {BASELINE}


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    return script("simulate")


def claims(found: list[Any], sign: int) -> int:
    return sum(claim.sign == sign for claim in found)


@pytest.mark.slow
def test_without_an_effect_the_headline_seldom_claims_one(simulation: ModuleType) -> None:
    """Gains and losses in at most 2.5 % of the tables each, within the binomial 99 % bound; the best of the grid far
    more often."""
    tables, honest = 100, ("selected, cross_validation: 5", "selected, cross_validation: 5, best-first")
    found = simulation.simulate(tables, 0.0, 1, (*honest, "best of the grid, in-sample"))
    for name in honest:
        assert max(claims(found[name], 1), claims(found[name], -1)) <= binom.ppf(0.99, tables, 0.025)
        assert abs(np.mean([claim.points for claim in found[name]])) < 0.5
    assert claims(found["best of the grid, in-sample"], 1) > binom.ppf(0.999, tables, 0.05)
    assert 1.4 <= np.mean([claim.points for claim in found["best of the grid, in-sample"]]) <= 3.2


@pytest.mark.slow
def test_a_true_effect_of_three_points_is_found_nearly_as_often_as_when_beta_was_known(simulation: ModuleType) -> None:
    tables = 100
    found = simulation.simulate(tables, 3.0, 2, ("a β fixed beforehand", "selected, cross_validation: 5"))
    known = claims(found["a β fixed beforehand"], 1) / tables
    assert claims(found["selected, cross_validation: 5"], 1) / tables > known - 0.2
    assert 2.0 < np.mean([claim.points for claim in found["selected, cross_validation: 5"]]) < 4.0


WORLDS = [(16, 30.0, 0.0, True), (50, 3.0, 0.5, False), (50, 10.0, 0.0, True), (100, 3.0, 0.5, True)]


def test_intervals_cover(simulation: ModuleType) -> None:
    """At least 94 % of the tables of each world, within the binomial 99 % bound."""
    for images, *world in WORLDS:
        found = simulation.coverage(40, images, simulation.World(*world), 0)
        assert min(found.values()) >= binom.ppf(0.01, 40, 0.94), (images, world, found)


def test_the_interval_of_flipped_totals_would_not_cover(
    simulation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval of old, as far to either side as 95 % of the flipped tables reach: none where no image changes."""

    def collapsed(grid: list[Scored], sets: Any, seed: int, repeats: int) -> Paired:
        found = of_procedure(grid, sets, seed, repeats)
        width = 1.96 * (found.gained + found.lost) ** 0.5 / len(grid[0].robust)
        return replace(found, low=found.delta - width, high=found.delta + width)

    monkeypatch.setattr(simulation, "of_procedure", collapsed)
    found = simulation.coverage(40, 50, simulation.World(3.0, 0.5, True), 0)
    assert found["selected"] < binom.ppf(0.01, 40, 0.94), found
    assert found["a β fixed beforehand"] >= binom.ppf(0.01, 40, 0.94), found
