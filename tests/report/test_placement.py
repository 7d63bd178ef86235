"""A board whose whole grid leaves the network as it is, or destroys it, says so and proposes another."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import boards

from harness.cli.terminal import print_board
from harness.report.placement import placement
from harness.report.verdict import model_verdict

FAINT = (
    "The whole grid leaves the network nearly as it is: its smoothing is at most 0.004, and 0.03 is needed; "
    "try steering.beta: ["
)


def grid(*points: tuple[float, float, int], **changes: Any) -> list[dict[str, Any]]:
    """Return a model's rows with these β, smoothings and numbers of images right; its baseline has 170 right."""
    rows = [
        (boards.point if number == 0 else boards.bounded)("m", beta, clean, 100, smoothing=smoothing, **changes)
        for number, (beta, smoothing, clean) in enumerate(points)
    ]
    return [boards.selected("m", f"{points[0][0]:g}"), *rows, boards.untouched("m", smoothing=0.0)]


@pytest.mark.parametrize(
    ("points", "note"),
    [
        ([(0.99, 0.002, 170), (0.98, 0.004, 170)], FAINT),
        ([(0.9, 2.0, 100), (0.5, 10.0, 20)], "The whole grid is likely to destroy the network: its smoothing is 2 or"),
        ([(0.9, 0.2, 84), (0.5, 1.0, 20)], "The whole grid destroys the network: its smoothing is 0.2 or more; try"),
        ([(0.9, 0.2, 85), (0.5, 1.0, 20)], ""),
        ([(0.99, 0.002, 170), (0.5, 0.1, 170)], ""),
    ],
)
def test_the_whole_grid_is_judged(
    points: list[tuple[float, float, int]], note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = boards.rows(*grid(*points))
    found = placement(rows)
    assert found.startswith(note)
    assert bool(found) == bool(note)
    assert model_verdict(rows).plain.endswith(f" {found}" if found else ".")
    print_board(rows, "x.csv")
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"m: {found}" if found else f"m: {len(points) + 1} steerings for the price of 3.0 AutoAttack runs"
    )


def test_the_proposal_is_made_for_the_spread_that_the_rows_tell() -> None:
    note = placement(boards.rows(*grid((0.98, 0.004, 170))))  # so the spread is 5, and β = 0 has a smoothing of 0.2
    assert note.endswith(
        "try steering.beta: [0.9, 0.871, 0.833, 0.785, 0.722, 0.641, 0.536, 0.401, 0.226, 0], or auto."
    )


@pytest.mark.parametrize(
    "changes", [{"family": "smooth"}, {"method": "lora-4"}, {"smoothing": None}], ids=["smooth", "lora", "unknown"]
)
def test_nothing_is_said_of_what_has_no_such_scale(changes: dict[str, Any]) -> None:
    assert (
        placement(
            boards.rows(*[row if row["method"] == "untouched" else row | changes for row in grid((0.98, 0.004, 170))])
        )
        == ""
    )


def test_nothing_is_said_of_a_model_that_failed() -> None:
    assert placement(boards.rows(boards.failed("m", "no such file"))) == ""
