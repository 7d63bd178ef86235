"""Hints: stretches of one line, drawn as text: f fooled, s survived, . untried, x not to be tried."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.scheduling.hints import Hints, hints


def hinted(*lines: str, images: list[int] | None = None) -> Hints:
    table = np.array([list(line) for line in lines]).T
    return hints(table == ".", np.isin(table, ["f", "s"]), table == "f", np.array(images or range(len(lines))))


@pytest.mark.parametrize(
    ("line", "rows"),
    [
        (".........", []),
        ("s...s....", []),
        ("f........", [1, 2, 4, 8]),
        ("........f", [0, 4, 6, 7]),
        ("f......f.", [1, 2, 3, 4, 5, 6, 8]),
        ("f....s...", [1, 2, 4]),
        ("..s..f..s", [3, 4, 6, 7]),
        ("f.xx.....", [1, 4, 6]),
        ("fs.......", []),
    ],
)
def test_between_two_that_were_fooled_all_are_tried_and_beyond_an_end_growing_distances(
    line: str, rows: list[int]
) -> None:
    assert hinted(line).row.tolist() == rows


def test_the_attempt_that_fooled_the_nearest_steering_is_tried_first() -> None:
    found = hinted("f..xs", "x..fx", images=[4, 4])
    assert dict(zip(found.row.tolist(), found.column.tolist(), strict=True)) == {1: 0, 2: 1}
    assert found.distance.tolist() == [1, 1]


def test_every_image_has_its_own_hint() -> None:
    found = hinted("f..", "f..", images=[4, 5])
    assert sorted(zip(found.row.tolist(), found.column.tolist(), strict=True)) == [(1, 0), (1, 1), (2, 0), (2, 1)]


@given(st.lists(st.text("fs.x", min_size=7, max_size=7), min_size=1, max_size=4))
def test_a_hint_has_a_fooled_neighbour_among_those_known_and_there_is_one_if_there_can_be(lines: list[str]) -> None:
    found = hinted(*lines, images=[0] * len(lines))
    assert len(set(found.row.tolist())) == len(found.row)

    def neighbours(line: str, row: int) -> set[str]:
        before, after = line[:row].replace(".", "").replace("x", ""), line[row + 1 :].replace(".", "").replace("x", "")
        return {before[-1:], after[:1]}

    for row, column in zip(found.row.tolist(), found.column.tolist(), strict=True):
        assert lines[column][row] == "."
        assert "f" in neighbours(lines[column], row)
    possible = any(line[row] == "." and "f" in neighbours(line, row) for line in lines for row in range(len(line)))
    assert bool(len(found.row)) == possible
