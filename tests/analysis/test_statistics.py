"""Against published numbers, other libraries and brute force."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from harness.analysis.score_interval import Critical, tango
from harness.analysis.statistics import holm, interval, mcnemar, newcombe, paired, unpaired, wilson

counts = st.integers(0, 40)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_statsmodels(pair: tuple[int, int]) -> None:
    successes, n = pair
    assert wilson(successes, n) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-12)


@given(counts, counts)
def test_mcnemar_is_statsmodels(gained: int, lost: int) -> None:
    expected = statsmodels_mcnemar([[5, lost], [gained, 5]], exact=True).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)


def test_newcombe_is_the_published_example() -> None:
    """Newcombe 1998, Stat. Med. 17:2635: 36, 12, 2, 0 of 50, method 10."""
    assert newcombe(36, 12, 2, 50) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@given(counts, counts, counts, counts)
def test_newcombe_is_antisymmetric_and_holds_the_difference(both: int, gained: int, lost: int, neither: int) -> None:
    n = both + gained + lost + neither
    if not n:
        return
    low, high = newcombe(both, gained, lost, n)
    mirror = newcombe(both, lost, gained, n)
    assert (low, high) == pytest.approx((-mirror[1], -mirror[0]))
    assert -1 <= low <= (gained - lost) / n <= high <= 1


def test_newcombe_covers() -> None:
    """The 95 % interval holds the true difference about 95 % of the time, for correlated bits."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        easy = rng.standard_normal(200)
        first, second = (easy + rng.standard_normal((2, 200))) / math.sqrt(2) < np.array([[0.0], [0.2]])
        low, high = newcombe((first & second).sum(), (~first & second).sum(), (first & ~second).sum(), 200)
        hits += low <= 0.0792597 <= high  # Φ(0.2) − ½
    assert 0.935 <= hits / 2000 <= 0.97


def test_paired_on_bits_counts() -> None:
    first, second = np.array([1, 1, 0, 0, 1.0]), np.array([1, 0, 1, 1, 1.0])
    found = paired(first, second)
    assert (found.gained, found.lost) == (2, 1)
    assert found.delta == pytest.approx(0.2)
    assert found.p_value == 1.0
    assert found.low <= newcombe(2, 2, 1, 5)[0] < newcombe(2, 2, 1, 5)[1] <= found.high


def bits(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.repeat([1.0, 0.0, 1.0, 0.0], [both, gained, lost, neither])
    return first, np.repeat([1.0, 1.0, 0.0, 0.0], [both, gained, lost, neither])


def score(difference: float, gained: int, lost: int, n: int) -> float:
    """McNemar's z about a true difference, the share of lost images found by brute force to be the likeliest."""
    from scipy.optimize import minimize_scalar

    def unlikely(losing: float) -> float:
        kept = 1 - 2 * losing - difference
        terms = ((gained, losing + difference), (lost, losing), (n - gained - lost, kept))
        return -sum(count * math.log(share) for count, share in terms if count)

    bounds = (max(0.0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12)
    losing = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return float((gained - lost - n * difference) / math.sqrt(n * (2 * losing + difference * (1 - difference))))


@pytest.mark.parametrize(("gained", "lost", "n"), [(12, 2, 50), (5, 0, 100), (3, 9, 40), (1, 1, 16), (30, 60, 1000)])
def test_the_score_interval_ends_where_the_score_test_rejects(gained: int, lost: int, n: int) -> None:
    low, high = tango(gained, lost, n, Critical(1.96, 2.5))
    assert score(low, gained, lost, n) == pytest.approx(1.96, abs=2e-3)
    assert score(high, gained, lost, n) == pytest.approx(-2.5, abs=2e-3)


def test_with_no_image_changed_the_interval_is_wilsons_for_none() -> None:
    found = paired(*bits(6, 0, 0, 10))
    assert (found.low, found.high) == pytest.approx((-wilson(0, 16)[1], wilson(0, 16)[1]), abs=1e-6)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
def test_an_interval_agrees_with_p_and_is_never_narrower_than_newcombes(
    both: int, gained: int, lost: int, neither: int
) -> None:
    n = both + gained + lost + neither
    if not n:
        return
    found, narrow = paired(*bits(both, gained, lost, neither)), newcombe(both, gained, lost, n)
    assert found.p_value == mcnemar(gained, lost)
    assert found.low <= narrow[0] + 1e-9
    assert found.high >= narrow[1] - 1e-9
    assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


def test_an_interval_of_graded_scores_agrees_with_p_too() -> None:
    drawn, significant = np.random.default_rng(3), 0
    for _ in range(60):
        first = drawn.random(25)
        found = paired(first, first + 0.1 * drawn.standard_normal(25) + 0.04)
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
        significant += found.p_value < 0.05
    assert 15 < significant < 50


def test_the_interval_of_graded_scores_is_a_bootstrap_and_of_bits_wilsons() -> None:
    values = np.random.default_rng(0).normal(-3.0, 2.0, 400)
    low, high = interval(values, graded=True)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert interval(np.full(7, 0.25), graded=True) == (0.25, 0.25)
    assert interval(np.array([1.0, 0, 1, 1]), graded=False) == wilson(3, 4)


def test_paired_on_graded_scores_is_close_to_the_normal_interval() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 6, 400) / 5
    second = np.clip(first + rng.choice([-0.2, 0, 0.2], 400, p=[0.1, 0.6, 0.3]), 0, 1)
    found = paired(first, second)
    difference = second - first
    error = difference.std(ddof=1) / math.sqrt(400)
    assert found.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.15 * error)
    assert paired(first, first).high == pytest.approx(wilson(0, 400)[1], abs=1e-6)  # shares may yet differ by one
    assert paired(first - 2, first - 2).high == pytest.approx(2 * wilson(0, len(first))[1])  # the largest error is 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_by_its_definition(p_values: list[float]) -> None:
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    running, expected = 0.0, [0.0] * len(p_values)
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        expected[index] = running
    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 31, 400])
def test_holm_is_statsmodels_to_the_last_bit(n: int) -> None:
    p_values = np.random.default_rng(n).beta(0.2, 1, n).round(2).tolist()  # many ties, many small
    assert holm(p_values) == multipletests(p_values, method="holm")[1].tolist()
    assert holm([]) == []


def test_unpaired_by_brute_force() -> None:
    """Fisher's p: all tables with the same margins that are no likelier than the one seen."""
    a, n_a, b, n_b = 3, 9, 8, 10
    weight = {k: math.comb(n_a, k) * math.comb(n_b, a + b - k) for k in range(n_a + 1) if 0 <= a + b - k <= n_b}
    expected = sum(w for w in weight.values() if w <= weight[a] * (1 + 1e-7)) / sum(weight.values())
    low, high, p_value = unpaired(a, n_a, b, n_b)
    assert p_value == pytest.approx(expected)
    delta = b / n_b - a / n_a
    first, second = wilson(a, n_a), wilson(b, n_b)
    assert low == pytest.approx(delta - math.hypot(b / n_b - second[0], first[1] - a / n_a))
    assert high == pytest.approx(delta + math.hypot(second[1] - b / n_b, a / n_a - first[0]))


def test_every_small_table_gives_finite_answers() -> None:
    for both, gained, lost, neither in product(range(3), repeat=4):
        n = both + gained + lost + neither
        if n:
            assert all(map(math.isfinite, newcombe(both, gained, lost, n)))


def test_errors_that_do_not_differ_have_an_interval_as_wide_as_shares_times_the_largest_error() -> None:
    """Once: it was ±0.0, as if it were certain that no further image changes."""
    errors = -np.linspace(0, 4, 100)
    found, shares = paired(errors, errors), paired(np.ones(100), np.ones(100))
    assert (found.delta, found.p_value) == (0, 1)
    assert (found.low, found.high) == pytest.approx((4 * shares.low, 4 * shares.high))
    assert found.high > 0.1
