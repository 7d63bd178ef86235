"""The ball of L1 within the box: the nearest point by first principles, the library's, and the search for a rank."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyautoattack import autopgd_base
from scipy.optimize import brentq
from torch import Tensor

from harness.attacks import l1_ball

CASES = st.sampled_from(["noise", "sparse", "ties", "inside"])


def rows(n: int, d: int, seed: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Moves, clean images (a third of the pixels black or white) and radii, float64."""
    drawn = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        values = torch.rand(*shape, generator=drawn, dtype=torch.float64)
        return (4 * values).round() / 4 if kind == "ties" else values

    clean = (1.5 * uniform(n, d) - 0.25).clamp(0, 1)
    moves = 4 * uniform(n, d) - 2
    if kind == "sparse":
        moves *= uniform(n, d) < 0.2
    radius = moves.abs().sum(1, keepdim=True) * (0.02 + 0.9 * uniform(n, 1))
    return moves, clean, radius * 3 if kind == "inside" else radius


@given(n=st.integers(1, 7), d=st.integers(1, 80), seed=st.integers(0, 2**32 - 1), kind=CASES)
@example(n=3, d=3072, seed=0, kind="noise")
@example(n=3, d=3072, seed=0, kind="ties")
@settings(max_examples=150, deadline=None)
def test_the_nearest_point_by_its_optimality_conditions(n: int, d: int, seed: int, kind: str) -> None:
    """Every size is clip(|move| − λ, 0, room), with λ = 0, or with the λ at which they add up to the radius."""
    moves, clean, radius = rows(n, d, seed, kind)
    ends = moves + l1_ball.shrunk(moves.float(), clean.float(), radius.float()).double()
    for move, x, r, end in zip(moves, clean, radius[:, 0], ends, strict=True):
        room = torch.where(move > 0, 1 - x, x)

        def sizes(level: float, move: Tensor = move, room: Tensor = room) -> Tensor:
            return torch.minimum((move.abs() - level).clamp(min=0), room)

        level = 0.0
        if sizes(0).sum() > r:
            level = brentq(lambda level, r=r: float(sizes(level).sum() - r), 0, float(move.abs().max()), xtol=1e-14)
        torch.testing.assert_close(end, move.sign() * sizes(level), atol=4e-6, rtol=0)
        assert end.abs().sum() <= r * (1 + 1e-5)
        assert (x + end).min() >= -1e-6
        assert (x + end).max() <= 1 + 1e-6


@given(n=st.integers(1, 7), d=st.integers(16, 80), seed=st.integers(0, 2**32 - 1), kind=CASES)
@settings(max_examples=80, deadline=None)
def test_equal_to_the_library(n: int, d: int, seed: int, kind: str) -> None:
    """With fewer coordinates the library may miss: its search stops too soon."""
    moves, clean, radius = (values.float() for values in rows(n, d, seed, kind))
    ours = l1_ball.shrunk(moves, clean, radius)
    for place in range(n):
        theirs = autopgd_base.L1_projection(clean[place, None], moves[place, None], float(radius[place]))[0]
        torch.testing.assert_close(ours[place], theirs, atol=1e-5, rtol=0)


@given(n=st.integers(1, 7), seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.3, 2.0, 5.0]), back=st.booleans())
@settings(max_examples=80, deadline=None)
def test_clean_images_outside_the_box_are_treated_as_the_library_does(
    n: int, seed: int, scale: float, back: bool
) -> None:
    """Moves that lead back into the box, as those of attacks do but for a step, and others that are as short as ε."""
    moves, clean, radius = (values.float() for values in rows(n, 64, seed, "noise"))
    clean = scale * (clean - 0.5)
    moves = (clean + moves).clamp(0, 1) - clean + 0.05 * moves if back else moves / 50
    radius = radius.clamp(max=1)
    ours = l1_ball.shrunk(moves, clean, radius)
    for place in range(n):
        theirs = autopgd_base.L1_projection(clean[place, None], moves[place, None], float(radius[place]))[0]
        torch.testing.assert_close(ours[place], theirs, atol=2e-5, rtol=0)


def test_a_move_that_ends_is_taken_back_to_the_last_bit() -> None:
    moves, clean, radius = (values.float() for values in rows(20, 300, 0, "noise"))
    delta = l1_ball.shrunk(moves, clean, radius)
    ended = (moves + delta) == 0
    assert ended.sum() > 1000
    assert torch.equal(delta[ended], -moves[ended])


def test_no_move_stays_none_and_no_radius_takes_all_back() -> None:
    moves, clean, _ = (values.float() for values in rows(4, 30, 0, "noise"))
    zero = torch.zeros(4, 1)
    assert not l1_ball.shrunk(torch.zeros_like(moves), clean, zero + 1).any()
    assert (moves + l1_ball.shrunk(moves, clean, zero)).abs().sum() < 1e-4


@pytest.mark.parametrize("width", [3, 40])
def test_same_bits_at_every_place(width: int) -> None:
    given_ = tuple(values.float() for values in rows(width, 301, 5, "noise"))
    together = l1_ball.shrunk(*given_)
    turned = l1_ball.shrunk(*(values.flip(0) for values in given_)).flip(0)
    assert torch.equal(together, turned)


@given(n=st.integers(1, 7), d=st.integers(1, 150), seed=st.integers(0, 2**32 - 1), ties=st.booleans())
@example(n=2, d=3072, seed=0, ties=True)
@settings(max_examples=150, deadline=None)
def test_the_n_th_smallest_is_that_of_sorting(n: int, d: int, seed: int, ties: bool) -> None:
    """Over many orders of magnitude, with zeros and denormals, and to the last bit."""
    drawn = torch.Generator().manual_seed(seed)
    values = torch.rand(n, d, generator=drawn) * 10 ** (80 * torch.rand(n, d, generator=drawn) - 44)
    values = torch.where(torch.rand(n, d, generator=drawn) < 0.1, 0.0, values)
    values = (4 * torch.rand(n, d, generator=drawn)).round() if ties else values
    ranks = torch.randint(d, (n, 1), generator=drawn)
    assert torch.equal(l1_ball.nth_smallest(values, ranks), values.sort(1).values.gather(1, ranks))
