"""Many paired differences of the same images, tested together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from harness.analysis.joint_test import joint_p_values
from harness.analysis.statistics import REPEATS, mcnemar

RNG = np.random.default_rng(0)


@given(gained=st.integers(0, 12), lost=st.integers(0, 12))
@settings(max_examples=30)
def test_one_test_of_bits_is_mcnemars_but_for_the_tables_drawn(gained: int, lost: int) -> None:
    """Exactly where each table is looked at once, by chance otherwise."""
    difference = np.repeat([1.0, -1.0, 0.0], [gained, lost, 5])[None]
    (p,) = joint_p_values(difference)
    exact = mcnemar(gained, lost)
    assert p == pytest.approx(exact, abs=1e-12 if gained + lost <= 13 else 0.025)


def test_one_test_of_grades_is_the_sign_flip_test() -> None:
    difference = RNG.standard_normal((1, 10)) + 0.5
    expected = permutation_test((difference[0],), np.mean, permutation_type="samples").pvalue
    assert joint_p_values(difference)[0] == pytest.approx(expected)


def test_of_several_tests_it_is_the_share_of_tables_in_which_any_is_as_large() -> None:
    """Two tests of other images: the other one is as large or larger in its own share of the tables."""
    differences = np.zeros((2, 12))
    differences[0, :6], differences[1, 6:] = 1, [1, 1, 1, 1, -1, 1]
    alone = [binomtest(0, 6).pvalue, binomtest(1, 6).pvalue]
    both = [1 - (1 - alone[0]) ** 2, 1 - (1 - alone[1]) ** 2]
    assert joint_p_values(differences) == pytest.approx(both)


def test_tests_that_agree_and_those_with_few_changes_cost_nothing() -> None:
    alone = np.zeros((1, 20))
    alone[0, :8] = -1
    few = np.zeros((30, 20))
    few[:, 10:13] = [1, -1, 1]
    assert (
        joint_p_values(np.concatenate([np.repeat(alone, 30, axis=0), few]))[0] == joint_p_values(alone)[0] == 2 / 2**8
    )


def test_nothing_changed_is_no_evidence() -> None:
    assert joint_p_values(np.zeros((3, 7))).tolist() == [1.0] * 3


def test_no_p_is_below_one_in_the_tables_looked_at() -> None:
    assert joint_p_values(np.ones((1, 40)))[0] == 1 / (REPEATS + 1)


def test_every_p_is_that_of_the_same_differences_reversed_and_needs_no_order() -> None:
    differences = RNG.integers(-1, 2, (4, 40)).astype(float)
    p_values = joint_p_values(differences)
    np.testing.assert_array_equal(joint_p_values(-differences), p_values)
    np.testing.assert_array_equal(joint_p_values(differences[::-1])[::-1], p_values)
