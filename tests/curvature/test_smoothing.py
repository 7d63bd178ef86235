"""Where a grid of β lies against a network's pre-activations, and where ``auto`` places one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.curvature.smoothing import (
    AUTO,
    AUTO_FROM,
    AUTO_TO,
    FAINT,
    PROPOSED,
    STRONG,
    chosen_or_placed,
    misplaced,
    placed,
    smoothing,
)
from harness.errors import ModelError

spreads = st.floats(1e-2, 1e3)


def test_smoothing_is_the_width_of_the_curve_in_spreads() -> None:
    assert smoothing(0.9, 2.0) == pytest.approx(0.05)
    assert smoothing(1.0, 2.0) == 0.0
    assert smoothing(0.9, None) is None


@pytest.mark.parametrize(
    ("betas", "spread", "fault"),
    [
        ([0.99, 0.98], 1.0, "leaves the network nearly as it is: its smoothing is at most 0.02, and 0.03 is needed"),
        ([0.9, 0.8], 0.05, "is likely to destroy the network: its smoothing is 2 or more, and few bear 1"),
        ([0.99, 0.5], 1.0, None),  # one of them is in the middle
        ([0.9999, 0.5], 0.1, None),  # one below, one above
        ([0.9, 0.5], None, None),
        ([], 1.0, None),
    ],
)
def test_a_grid_that_lies_wholly_aside_is_told(betas: list[float], spread: float | None, fault: str | None) -> None:
    found = misplaced(betas, spread)
    assert (found.fault if found else None) == fault


def test_a_network_that_is_seen_to_be_destroyed_is_told_whatever_its_smoothing() -> None:
    assert misplaced([0.8, 0.7], 0.72) is None
    found = misplaced([0.8, 0.7], 0.72, destroyed=True)
    assert found is not None
    assert found.fault == "destroys the network: its smoothing is 0.28 or more"


@given(st.lists(st.floats(0, 0.999), min_size=1), spreads)
def test_the_grid_that_is_proposed_is_not_misplaced(betas: list[float], spread: float) -> None:
    found = misplaced(betas, spread)
    if found is None:
        return
    if spread * FAINT >= 1:
        assert found.remedy.startswith("expect no effect")
        return
    proposed = [float(text) for text in found.remedy.split("[")[1].split("]")[0].split(",")]
    assert len(proposed) == PROPOSED
    assert misplaced(proposed, spread) is None


@given(spreads)
def test_auto_goes_from_hardly_anything_to_destroyed_or_as_far_as_beta_goes(spread: float) -> None:
    betas = chosen_or_placed("auto", spread)
    assert len(betas) == AUTO
    assert all(0 <= after < before < 1 for before, after in pairwise(betas))
    most = (1 - betas[-1]) / spread
    assert most == pytest.approx(AUTO_TO, rel=0.07) if spread * AUTO_TO < 0.95 else betas[-1] < 0.1
    assert (1 - betas[0]) / spread <= AUTO_FROM * 1.07


@given(st.floats(0.1, 1), st.floats(-1e-5, 1e-5))
def test_auto_does_not_depend_on_the_last_bits_of_the_spread(spread: float, noise: float) -> None:
    shown = float(f"{spread:.2g}")
    assert chosen_or_placed("auto", shown * (1 + noise)) == chosen_or_placed("auto", shown)


def test_a_grid_that_was_chosen_stays() -> None:
    assert chosen_or_placed((0.9, 0.5), 3.0) == (0.9, 0.5)


def test_auto_without_pre_activations_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"steering\.beta: auto .*; give the values of β"):
        chosen_or_placed("auto", None)


def test_placed_is_even_on_a_logarithmic_scale() -> None:
    widths = [1 - beta for beta in placed(0.5, 0.02, 0.2, 3)]
    assert widths == pytest.approx([0.01, 0.01 * 10**0.5, 0.1], rel=5e-3)
    assert FAINT < STRONG
