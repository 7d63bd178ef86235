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

from harness.analysis.statistics import fell, holm, interval, mcnemar, newcombe, paired, unpaired, wilson

counts = st.integers(0, 40)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_statsmodels(pair: tuple[int, int]) -> None:
    successes, n = pair
    assert wilson(successes, n) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-12)


@given(counts, counts)
def test_mcnemar_is_statsmodels(gained: int, lost: int) -> None:
    expected = statsmodels_mcnemar([[5, lost], [gained, 5]], exact=True).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)


@given(counts, counts)
def test_fell_is_the_tail_of_fair_coins(gained: int, lost: int) -> None:
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(lost, n + 1)) / 2**n
    assert fell(gained, lost) == pytest.approx(tail)


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
    assert (found.low, found.high) == newcombe(2, 2, 1, 5)
    assert found.p_value == 1.0


def test_the_interval_of_graded_scores_is_a_bootstrap_and_of_bits_wilsons() -> None:
    values = np.random.default_rng(0).normal(-3.0, 2.0, 400)
    low, high = interval(values, graded=True)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert interval(np.full(7, 0.25), graded=True) == (0.25, 0.25)
    assert interval(np.array([1.0, 0, 1, 1]), graded=False) == wilson(3, 4)


def test_paired_on_graded_scores_is_a_bootstrap() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 6, 400) / 5
    second = np.clip(first + rng.choice([-0.2, 0, 0.2], 400, p=[0.1, 0.6, 0.3]), 0, 1)
    found = paired(first, second)
    difference = second - first
    error = difference.std(ddof=1) / math.sqrt(400)
    assert found.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.15 * error)
    assert paired(first, first).low == paired(first, first).high == 0


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
