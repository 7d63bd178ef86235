"""The grid's points and their order."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from harness.api.records import BASELINE, Steering
from harness.scheduling.grid import grid, in_line

units = st.floats(0, 1).map(lambda value: round(value, 3))
betas_and_cs = st.lists(units, min_size=1, max_size=6), st.lists(units, min_size=1, max_size=3)


@given(*betas_and_cs)
def test_the_grid_is_the_baseline_and_every_other_pair_once(betas: list[float], cs: list[float]) -> None:
    points = grid(betas, cs, "all")
    assert points[0] == BASELINE
    assert len(set(points)) == len(points)
    assert set(points[1:]) == {Steering(beta, c, "all") for beta in betas for c in cs if beta != 1}
    assert all(a.beta >= b.beta for a, b in pairwise(points))


@given(*betas_and_cs)
def test_the_line_has_every_steering_once_and_no_other_method(betas: list[float], cs: list[float]) -> None:
    points = grid(betas, cs, "all", methods=["lora"])
    line = in_line(points)
    assert sorted(line) == list(range(len(points) - 1))
    for one, next_ in pairwise(points[number] for number in line):
        assert one.c <= next_.c


def test_with_one_c_the_line_is_that_of_the_betas() -> None:
    points = grid([0.7, 0.5, 0.9], [0.5], "all")
    assert [points[number].beta for number in in_line(points)] == [0.5, 0.7, 0.9, 1.0]


def test_with_two_cs_the_line_turns_at_the_end() -> None:
    points = [Steering(beta, c) for c in (0.0, 1.0) for beta in (0.5, 0.7, 0.9)]
    assert [points[number][:2] for number in in_line(points)] == [
        (0.5, 0.0), (0.7, 0.0), (0.9, 0.0), (0.9, 1.0), (0.7, 1.0), (0.5, 1.0),
    ]  # fmt: skip
