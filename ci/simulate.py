#!/usr/bin/env python3
"""Measure how often each way of choosing β claims a gain, on simulated outcome tables with and without a true effect.

A table has 1,000 images and 31 steerings, the baseline among them. Whether an image is robust under a steering is a
threshold on a Gaussian that shares half of its variance over all steerings (some images are easy) and is correlated 0.9
between neighbouring β, so the steerings flip about as many images as real neighbouring β do. A true effect lifts the
accuracy of ten neighbouring β by so many points. A claim is a gain with p below 5 %: of the exact McNemar test; for the
cross-validated headline of the test of the whole procedure, as on a leaderboard; for "any β", Holm-adjusted.

"best-first" is the headline as a best-first search leaves it: the winners finished, every other β at the bound of the
cheap attacks, which 4 % of the images that are lost in the end survive.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

import numpy as np
from scipy.stats import norm

from harness.analysis.selection import (
    AnySelection,
    CrossValidation,
    Holdout,
    InSample,
    Scored,
    better,
    choose,
    selection_sets,
)
from harness.analysis.selection_inference import Sets, of_procedure
from harness.analysis.statistics import Paired, holm, paired, wilson
from harness.api.records import BASELINE, Steering

IMAGES, BETAS, ALPHA, MISSED = 1000, 30, 0.05, 0.04
GRID = (BASELINE, *(Steering(round(0.99 - 0.01 * k, 2)) for k in range(BETAS)))


def outcome_table(rng: np.random.Generator, effect: float, accuracy: float = 0.5) -> list[Scored]:
    """Draw the outcomes of all images under each steering.

    Args:
        rng: source of the random numbers.
        effect: points by which ten of the thirty β raise the robust accuracy.
        accuracy: robust accuracy of the baseline, in [0, 1].
    """
    easy = rng.standard_normal(IMAGES)
    drift = np.empty((len(GRID), IMAGES))
    drift[0] = rng.standard_normal(IMAGES)
    for k in range(1, len(GRID)):
        drift[k] = 0.9 * drift[k - 1] + np.sqrt(1 - 0.9**2) * rng.standard_normal(IMAGES)
    shares = np.full(len(GRID), accuracy)
    shares[11:21] += effect / 100
    robust = np.sqrt(0.5) * (easy + drift) < norm.ppf(shares)[:, None]
    clean = np.ones(IMAGES, np.float32)
    return [Scored(steering, clean, row.astype(np.float32)) for steering, row in zip(GRID, robust, strict=True)]


def best_first(grid: list[Scored], sets: Sets, seed: int) -> list[Scored]:
    """Return the table that a search leaves: baseline and winners finished, every other β at its bound.

    Args:
        grid: the finished table.
        sets: the images that each β is chosen on, and those it is reported on.
        seed: seed of which images the cheap attacks miss.
    """
    missed = np.random.default_rng(seed).random((len(grid), IMAGES)) < MISSED
    bounds = [Scored(scored.steering, scored.clean, np.maximum(scored.robust, more.astype(np.float32)))
              for scored, more in zip(grid, missed, strict=True)]  # fmt: skip
    bounds[0] = grid[0]
    everywhere = np.arange(IMAGES)
    while True:
        leaders = {
            min(range(len(grid)), key=lambda k: better(_on(bounds[k], where)))
            for where in (everywhere, *(chosen_on for chosen_on, _ in sets))
        }
        unfinished = [leader for leader in leaders if bounds[leader] is not grid[leader]]
        if not unfinished:
            return bounds
        for leader in unfinished:
            bounds[leader] = grid[leader]


def _on(scored: Scored, where: np.ndarray) -> Scored:
    return Scored(scored.steering, scored.clean[where], scored.robust[where])


# --- the procedures: does each claim a gain, and of how many points ---

Claim = tuple[bool, float]
Procedure = Callable[[list[Scored], np.ndarray, int], Claim]
"""Called with a table of scored steerings, the labels of its images and a seed."""


def _claim(gain: Paired) -> Claim:
    return gain.p_value < ALPHA and gain.delta > 0, 100 * gain.delta


def _selected(selection: AnySelection) -> Procedure:
    """Return the procedure that tests the selected β by McNemar's test, as if it had been known beforehand."""

    def procedure(grid: list[Scored], labels: np.ndarray, seed: int) -> Claim:
        choice = choose(selection, grid, labels, seed)
        return _claim(paired(grid[0].robust[choice.reported], choice.scores(grid)[1]))

    return procedure


def _whole(grid: list[Scored], labels: np.ndarray, seed: int) -> Claim:
    return _claim(of_procedure(grid, selection_sets(FIVE_FOLDS, labels, seed), seed))


def _whole_best_first(grid: list[Scored], labels: np.ndarray, seed: int) -> Claim:
    sets = selection_sets(FIVE_FOLDS, labels, seed)
    return _claim(of_procedure(best_first(grid, sets, seed), sets, seed))


def _any(grid: list[Scored], labels: np.ndarray, seed: int) -> Claim:
    every = [paired(grid[0].robust, scored.robust) for scored in grid[1:]]
    adjusted = holm([gain.p_value for gain in every])
    significant = any(p < ALPHA and gain.delta > 0 for gain, p in zip(every, adjusted, strict=True))
    return significant, 100 * max(gain.delta for gain in every)


def _known(grid: list[Scored], labels: np.ndarray, seed: int) -> Claim:
    return _claim(paired(grid[0].robust, grid[15].robust))


FIVE_FOLDS = CrossValidation(folds=5)
PROCEDURES: dict[str, Procedure] = {
    "best of the grid, in-sample": _selected(InSample()),
    "selected, cross_validation: 5, McNemar": _selected(FIVE_FOLDS),
    "selected, cross_validation: 5": _whole,
    "selected, cross_validation: 5, best-first": _whole_best_first,
    "selected, holdout: 0.5": _selected(Holdout(share=0.5)),
    "any β of the grid, Holm": _any,
    "a β fixed beforehand": _known,
}


def simulate(
    tables: int, effect: float, seed: int, procedures: Collection[str] = tuple(PROCEDURES)
) -> dict[str, tuple[int, float]]:
    """Return how many claims each procedure makes over all tables, and its mean gain in points.

    Args:
        tables: number of tables.
        effect: true effect on ten of the thirty β, in points.
        seed: seed of the tables.
        procedures: keys of `PROCEDURES`.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(IMAGES) % 10
    found: dict[str, list[Claim]] = {name: [] for name in procedures}
    for number in range(tables):
        table = outcome_table(rng, effect)
        for name in procedures:
            found[name].append(PROCEDURES[name](table, labels, number))
    return {
        name: (sum(claimed for claimed, _ in claims), float(np.mean([points for _, points in claims])))
        for name, claims in found.items()
    }


def main() -> None:
    """Print the table of harness/analysis/README.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    effects = (0.0, 3.0)
    found = {effect: simulate(options.tables, effect, options.seed) for effect in effects}
    print(
        f"| {options.tables} tables, seed {options.seed} | claims, no effect | mean gain "
        "| claims, +3 points | mean gain |"
    )
    print("|---|---|---|---|---|")
    for name in found[0.0]:
        cells = []
        for effect in effects:
            count, gain = found[effect][name]
            low, high = wilson(count, options.tables)
            cells += [f"{count / options.tables:.1%} ({low:.1%} – {high:.1%})", f"{gain:+.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
