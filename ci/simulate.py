#!/usr/bin/env python3
"""Measure how often each way of choosing β claims a gain, how often its interval covers, and what the gate sees.

An outcome table has a row of images for each of 31 steerings, the baseline among them. Whether an image is robust under
a steering is a threshold on a Gaussian that shares half of its variance over all steerings (some images are easy) and
is correlated 0.9 between neighbouring β, so the steerings flip about as many images as real neighbouring β do. Where
gains are nested all the variance is shared: no image is lost. A true effect lifts the accuracy of ten neighbouring β by
so many points. A claim has a p below 5 %: of the exact McNemar test; for the cross-validated headline of the test of
the whole procedure, as on a leaderboard; for "any β", Holm-adjusted.

"best-first" is the headline as a best-first search leaves it: baseline and winners are finished, and of every other β
just as many images are known to be lost as put its bound under the leader, on all images and on each set that a choice
is made on.

The interval of a headline covers where the true gain of the β chosen, averaged over the folds, is inside.

The gate is shown two runs of the same board that differ by noise: each threshold is missed by a Gaussian that shares
half of its variance over the steerings, anew in each run, so that 2 % of the images of a row flip. Then images that
survive are lost, of one row or of each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from harness.analysis.selection import (
    AnySelection,
    CrossValidation,
    Holdout,
    InSample,
    Scored,
    choose,
    selection_sets,
)
from harness.analysis.selection_inference import Sets, of_procedure
from harness.analysis.statistics import Paired, holm, mcnemar, paired, wilson
from harness.api.records import BASELINE, Steering
from harness.leaderboard.regression import ALPHA as GATE_ALPHA
from harness.leaderboard.regression import gate_p_values

IMAGES, BETAS, ALPHA = 1000, 30, 0.05
GRID = (BASELINE, *(Steering(round(0.99 - 0.01 * k, 2)) for k in range(BETAS)))
LIFTED, KNOWN = slice(11, 21), 15
"""The β that a true effect lifts, and the one of them that is known beforehand."""


def true_gains(effect: float, accuracy: float) -> np.ndarray:
    """Return the true gain of each steering, in [-1, 1]; an accuracy stays in [0, 1]."""
    gains = np.zeros(len(GRID))
    gains[LIFTED] = np.clip(effect / 100, -accuracy, 1 - accuracy)
    return gains


def outcome_table(
    rng: np.random.Generator, effect: float, accuracy: float = 0.5, images: int = IMAGES, nested: bool = False
) -> list[Scored]:
    """Draw the outcomes of all images under each steering.

    Args:
        rng: source of the random numbers.
        effect: points by which ten of the thirty β raise the robust accuracy.
        accuracy: robust accuracy of the baseline, in [0, 1].
        images: number of images.
        nested: whether no image is lost where the accuracy is higher.
    """
    robust = hardness(rng, images, nested) < norm.ppf(accuracy + true_gains(effect, accuracy))[:, None]
    clean = np.ones(images, np.float32)
    return [Scored(steering, clean, row.astype(np.float32)) for steering, row in zip(GRID, robust, strict=True)]


def hardness(rng: np.random.Generator, images: int, nested: bool = False) -> np.ndarray:
    """Draw a Gaussian for each steering and image, [steerings, images]; a robust image has it under a threshold."""
    easy = rng.standard_normal(images)
    drift = np.empty((len(GRID), images))
    drift[0] = rng.standard_normal(images)
    for k in range(1, len(GRID)):
        drift[k] = 0.9 * drift[k - 1] + np.sqrt(1 - 0.9**2) * rng.standard_normal(images)
    return np.tile(easy, (len(GRID), 1)) if nested else np.sqrt(0.5) * (easy + drift)


def best_first(grid: list[Scored], sets: Sets, seed: int) -> list[Scored]:
    """Return the table that a search leaves: baseline and winners finished, every other β just under the leaders.

    Args:
        grid: the finished table, in the order of ties.
        sets: the images that each β is chosen on, and those it is reported on.
        seed: seed of the order in which the images of a steering are lost.
    """
    truth = np.stack([scored.robust for scored in grid])
    bounds = np.ones_like(truth)
    bounds[0] = truth[0]
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(truth.shape[1]), (len(grid), 1)), axis=1)
    everywhere = np.arange(truth.shape[1])
    wheres = [everywhere, *(chosen_on for chosen_on, _ in sets)]
    unsettled = True
    while unsettled:
        unsettled = False
        for where in wheres:
            while (bounds[leader := int(bounds[:, where].sum(axis=1).argmax())] != truth[leader]).any():
                unsettled = True
                finished = (bounds == truth).all(axis=1)
                ahead = bounds[leader, where].sum() - bounds[finished][:, where].sum(axis=1).max()
                inside = order[leader][np.isin(order[leader], where)]
                lost = inside[bounds[leader, inside] > truth[leader, inside]]
                falls = lost if len(lost) <= ahead else lost[: int(ahead) + 1]
                bounds[leader, falls] = 0
                if len(lost) <= ahead:  # it has won this set, and is finished on all images
                    bounds[leader] = truth[leader]
    return [Scored(scored.steering, scored.clean, row) for scored, row in zip(grid, bounds, strict=True)]


# --- the procedures: what each claims, and of how many points ---


class Claim(NamedTuple):
    """A claim of a gain (1), of a loss (-1) or of neither (0), and the gain in points."""

    sign: int
    points: float


Procedure = Callable[[list[Scored], np.ndarray, int], Claim]
"""Called with a table of scored steerings, the labels of its images and a seed."""


def _claim(gain: Paired) -> Claim:
    return Claim(int(np.sign(gain.delta)) if gain.p_value < ALPHA else 0, 100 * gain.delta)


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
    signs = [np.sign(gain.delta) for gain, p in zip(every, adjusted, strict=True) if p < ALPHA]
    return Claim(int(max(signs, default=0)), 100 * max(gain.delta for gain in every))


def _known(grid: list[Scored], labels: np.ndarray, seed: int) -> Claim:
    return _claim(paired(grid[0].robust, grid[KNOWN].robust))


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
) -> dict[str, list[Claim]]:
    """Return what each procedure claims on every table.

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
    return found


# --- coverage ---


class World(NamedTuple):
    """What the outcomes are drawn from; see `outcome_table`."""

    effect: float
    accuracy: float
    nested: bool

    @property
    def name(self) -> str:
        """The world in words."""
        return f"{100 * self.accuracy:g} %, {'nested' if self.nested else 'independent'}"


SIZES, EFFECTS = (16, 50, 100, 250, 1000), (0.0, 1.0, 3.0, 5.0, 10.0, 30.0)
KINDS = ((0.0, True), (0.5, True), (0.5, False), (1.0, True))
"""Accuracy of the baseline, and whether gains are nested. Of a baseline at 100 %, effects are losses."""
INTERVALS = ("a β fixed beforehand", "selected", "selected, best-first")


def coverage(tables: int, images: int, world: World, seed: int) -> dict[str, int]:
    """Return on how many tables each of `INTERVALS` covers its true gain.

    Args:
        tables: number of tables.
        images: number of images of a table.
        world: what they are drawn from.
        seed: seed of the tables.
    """
    rng, labels = np.random.default_rng(seed), np.arange(images) % 10
    truth = dict(zip(GRID, true_gains(world.effect, world.accuracy), strict=True))
    found = dict.fromkeys(INTERVALS, 0)
    for number in range(tables):
        every = outcome_table(rng, world.effect, world.accuracy, images, world.nested)
        grid = every[::THIRD]
        sets = selection_sets(FIVE_FOLDS, labels, number)
        choice = choose(FIVE_FOLDS, grid, labels, number)
        chosen = sum(truth[one] * len(part) for one, part in zip(choice.chosen, choice.parts, strict=True)) / images
        gains = (
            (paired(every[0].robust, every[KNOWN].robust), truth[GRID[KNOWN]]),
            (of_procedure(grid, sets, number, REPEATS), chosen),
            (of_procedure(best_first(grid, sets, number), sets, number, REPEATS), chosen),
        )
        for name, (gain, true) in zip(INTERVALS, gains, strict=True):
            found[name] += int(gain.low - ROUNDING <= true <= gain.high + ROUNDING)
    return found


ROUNDING, THIRD, REPEATS = 1e-9, 3, 399
"""Every third β and fewer repeats of the test, for the sake of time."""


def worlds(effect: float) -> list[World]:
    """Return the worlds with an effect of so many points; with none, nested gains change no image."""
    return [
        World(-effect if accuracy == 1 else effect, accuracy, nested)
        for accuracy, nested in KINDS
        if effect or not nested
    ]


# --- the gate ---

NIGHTS = {"100, no noise": (100, 0.0), "100, noise": (100, 0.045), "1000, noise": (1000, 0.045)}
"""Number of images, and standard deviation of the noise of a run."""
LOST = (0, 2, 4, 6, 8, 10, 12, 15)
"""Number of images that a row loses."""
CHANGES = ("one row", "each row, images of its own", "each row, mostly the same")
GATE_REPEATS = 1999


def night(rng: np.random.Generator, images: int, noise: float, lost: int, kind: str) -> np.ndarray:
    """Draw a board and a second run of it, and return its change of each image, [rows, images].

    Args:
        rng: source of the random numbers.
        images: number of images.
        noise: standard deviation of the noise of a run.
        lost: number of surviving images that are lost in the second run.
        kind: one of `CHANGES`.
    """
    hard = hardness(rng, images)
    before, after = ((hard + noise * _deviations(rng, images) < 0).astype(np.float64) for _ in range(2))
    order = rng.permutation(images)
    for row in after[:1] if kind == "one row" else after:
        of_row = order if kind == "each row, mostly the same" else rng.permutation(images)
        row[of_row[row[of_row] > 0][:lost]] = 0
    return np.asarray(after - before)


def _deviations(rng: np.random.Generator, images: int) -> np.ndarray:
    shared, own = rng.standard_normal(images), rng.standard_normal((len(GRID), images))
    return np.asarray(np.sqrt(0.5) * (shared + own))


def shut(changed: np.ndarray) -> bool:
    """Return whether the gate finds a change [rows, images] beyond chance."""
    p_values = gate_p_values(changed[:, None], np.ones(len(changed), bool), GATE_REPEATS)
    return bool(p_values.min() < GATE_ALPHA)


def shut_by_rows(changed: np.ndarray) -> bool:
    """Return whether McNemar's test of a row finds one, by Holm's correction over the rows."""
    p_values = [mcnemar(int((row > 0).sum()), int((row < 0).sum())) for row in changed]
    return min(holm(p_values)) < GATE_ALPHA


def gate(nights: int, images: int, noise: float, lost: int, kind: str, seed: int) -> tuple[int, int]:
    """Return on how many nights the gate is shut, and on how many it would be by each row's own test; see `night`."""
    rng = np.random.default_rng(seed)
    changes = [night(rng, images, noise, lost, kind) for _ in range(nights)]
    return sum(map(shut, changes)), sum(map(shut_by_rows, changes))


# --- the tables of harness/analysis/README.md and ci/README.md ---


def print_claims(tables: int, seed: int) -> None:
    """Print how often each procedure claims a gain or a loss, without an effect and with one of 3 points."""
    without, with_effect = simulate(tables, 0.0, seed), simulate(tables, 3.0, seed)
    print(
        f"| {tables} tables, seed {seed} | gains claimed, no effect | losses claimed | mean gain "
        "| gains claimed, +3 points | mean gain |"
    )
    print("|---|---|---|---|---|---|")
    for name in PROCEDURES:
        none, some = without[name], with_effect[name]
        cells = (_share(none, 1), _share(none, -1), _mean(none), _share(some, 1), _mean(some))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print()


def _share(claims: Sequence[Claim], sign: int) -> str:
    count = sum(claim.sign == sign for claim in claims)
    low, high = wilson(count, len(claims))
    return f"{count / len(claims):.1%} ({low:.1%} – {high:.1%})"


def _mean(claims: Sequence[Claim]) -> str:
    return f"{np.mean([claim.points for claim in claims]):+.2f}"


def print_coverage(tables: int, seed: int) -> None:
    """Print the coverage of each interval by baseline, kind of gains, effect and number of images."""
    print(
        f"| {tables} tables, seed {seed}: fixed / selected / best-first | effect | n = {' | '.join(map(str, SIZES))} |"
    )
    print("|---|---|" + "---|" * len(SIZES))
    for number, effect in enumerate(EFFECTS):
        for world in worlds(effect):
            cells = [
                " / ".join(f"{100 * hit / tables:.1f}" for hit in coverage(tables, n, world, seed + number).values())
                for n in SIZES
            ]
            print(f"| {world.name} | {world.effect:+g} | {' | '.join(cells)} |", flush=True)
    print()


def print_gate(nights: int, seed: int) -> None:
    """Print how often the gate is shut by kind of change, number of images, noise, and images that a row loses."""
    print(
        f"| {nights} nights, seed {seed}: gate / row by row | images | {' | '.join(f'{lost} lost' for lost in LOST)} |"
    )
    print("|---|---|" + "---|" * len(LOST))
    for name, (images, noise) in NIGHTS.items():
        for kind in CHANGES:
            found = [gate(nights, images, noise, lost, kind, seed) for lost in LOST]
            cells = [" / ".join(f"{100 * count / nights:.1f}" for count in counts) for counts in found]
            print(f"| {kind} | {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables of harness/analysis/README.md and ci/README.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(TABLES), help="print one of the tables")
    options = parser.parse_args()
    for name, print_table in TABLES.items():
        if options.only in (None, name):
            print_table(options.tables, options.seed)


TABLES = {"claims": print_claims, "coverage": print_coverage, "gate": print_gate}


if __name__ == "__main__":
    main()
