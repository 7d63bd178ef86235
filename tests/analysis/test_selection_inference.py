"""The test of the whole procedure, against a slow and plain one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from harness.analysis import selection_inference
from harness.analysis.selection import CrossValidation, Scored, choose, selection_sets
from harness.analysis.selection_inference import of_procedure
from harness.analysis.statistics import paired
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


def slow_total(grid: list[Scored], sets: Sequence[tuple[np.ndarray, np.ndarray]], signs: np.ndarray) -> float:
    """The procedure by its definition, on a table whose differences from the baseline have been flipped."""
    flipped = [
        Scored(scored.steering, scored.clean, grid[0].robust + signs * (scored.robust - grid[0].robust))
        for scored in grid
    ]
    total = 0.0
    for chosen_on, reported_on in sets:
        winner = max(
            flipped,
            key=lambda scored: (
                scored.robust[chosen_on].sum(),
                scored.clean[chosen_on].sum(),
                scored.steering.beta,
            ),
        )
        total += float((winner.robust - flipped[0].robust)[reported_on].sum())
    return total


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_procedure_repeated(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection_inference, "REPEATS", 150)
    grid, labels = table(seed, effect=0.3 * (seed % 3))
    sets = selection_sets(CrossValidation(folds=4), labels, seed)
    found = of_procedure(grid, sets, seed)
    rng = np.random.default_rng(seed)
    signs = np.concatenate(list(selection_inference._signs(rng, len(labels))))
    totals = [slow_total(grid, sets, row) for row in signs]
    own = slow_total(grid, sets, np.ones(len(labels)))
    assert found.delta == pytest.approx(own / len(labels))
    sizes = np.sort(np.abs([*totals, own]))
    assert found.p_value == pytest.approx((sizes >= abs(own)).mean())
    width = sizes[int(np.ceil(0.95 * 151)) - 1] / len(labels)
    assert (found.low, found.high) == pytest.approx((max(found.delta - width, -1), min(found.delta + width, 1)))


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


def test_nothing_but_the_baseline_gains_nothing() -> None:
    grid, labels = table(2)
    found = of_procedure(grid[:1], selection_sets(CrossValidation(folds=5), labels, 0), 0)
    assert (found.delta, found.low, found.high, found.p_value) == (0, 0, 0, 1)
