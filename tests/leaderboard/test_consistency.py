"""A board follows from its outcome file: as computed it does, and after an edit, a cut or a mixture it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import boards
from helpers.gate import BITS, COMMITTED, GRID, SHARED, board, entry, flip

from harness.api.records import BASELINE, Steering
from harness.errors import LeaderboardError
from harness.leaderboard import board_files, outcomes
from harness.leaderboard.consistency import check, check_rows
from harness.leaderboard.regression import Board
from harness.leaderboard.row import rows_of

COMMITTED_BOARDS = sorted(
    path for path in (Path(__file__).parents[2] / "leaderboards").glob("*.csv") if outcomes.path_of(path).exists()
)


def hold(found: Board) -> None:
    rows = rows_of(found.table)
    check_rows(rows)
    check(rows, found.outcomes)


def refusal(found: Board) -> str:
    with pytest.raises(LeaderboardError) as refused:
        hold(found)
    return str(refused.value)


def edited(row: int, **cells: Any) -> Board:
    table = COMMITTED.table.copy()
    for column, value in cells.items():
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
    return Board(table, COMMITTED.outcomes)


def test_what_was_computed_follows() -> None:
    errors = -BITS.astype("float32") / 3
    graded = board(entry({BASELINE: errors, Steering(0.5): errors * 2}, clean=errors, target="values"))
    for found in (COMMITTED, graded, board(entry(GRID), entry(GRID, SHARED | {"model": "other"}))):
        check(rows_of(found.table), found.outcomes)


@pytest.mark.parametrize("size", [30.0, 1e3, 1e5])
def test_large_errors_follow_too(size: float) -> None:
    """Once: seven digits of a large error were held against six decimals of its mean."""
    errors = -size * np.random.default_rng(0).random(len(BITS)).astype(np.float32)
    found = board(entry({BASELINE: errors, Steering(0.5): errors * np.float32(1.7)}, clean=errors, target="values"))
    hold(found)
    table = found.table.assign(robust=found.table["robust"] * 1.0001)
    with pytest.raises(LeaderboardError, match="robust"):
        hold(Board(table, found.outcomes))


@pytest.mark.parametrize("path", COMMITTED_BOARDS, ids=lambda path: path.stem)
def test_the_committed_boards_follow(path: Path) -> None:
    board_files.read_whole(path)


HEADLINE, BEST = 0, 1


@pytest.mark.parametrize(
    ("row", "cells"),
    [
        (BEST, {"robust": 0.9}),
        (BEST, {"clean": 0.9}),
        (BEST, {"n": 199}),
        (BEST, {"robust_low": 0.1}),
        (BEST, {"robust_high": 0.99}),
        (BEST, {"robust_aa": 0.1}),
        (BEST, {"delta_pp": 7.0}),
        (BEST, {"delta_low": 1.0}),
        (BEST, {"gained": 50}),
        (BEST, {"lost": 0}),
        (BEST, {"p_value": 0.001}),
        (BEST, {"rank": 2}),
        (BEST, {"beta": 0.8}),
        (BEST, {"model": "another"}),
        (HEADLINE, {"robust": 0.9}),
        (HEADLINE, {"clean": 0.1}),
        (HEADLINE, {"delta_pp": 7.0}),
        (HEADLINE, {"chosen": "0.3"}),
        (HEADLINE, {"chosen": "1"}),
        (HEADLINE, {"n": 201}),
    ],
)
def test_an_edit_is_noticed(row: int, cells: dict[str, Any]) -> None:
    message = refusal(edited(row, **cells))
    assert message.startswith(("m", "another"))
    assert message.endswith("run the benchmark again, or restore both files") or "run the benchmark again" in message


def test_a_row_twice_a_row_too_few_and_no_baseline_are_noticed() -> None:
    table = COMMITTED.table
    assert "m β=0.9: expected one row, found 2" in refusal(Board(pd.concat([table, table[1:2]]), COMMITTED.outcomes))
    assert "m β=0.9: expected a row" in refusal(Board(table.drop(index=1), COMMITTED.outcomes))
    untouched = table["method"] == "untouched"
    kept = COMMITTED.outcomes[COMMITTED.outcomes["method"] != "untouched"]
    assert "expected one row of the untouched network, found 0" in refusal(Board(table[~untouched], kept))


def test_the_outcomes_of_another_run_are_noticed() -> None:
    other = board(entry(GRID | {Steering(0.9): flip(BITS, 4, 9)}))
    assert "which follows from the outcome file" in refusal(Board(COMMITTED.table, other.outcomes))
    assert "no outcomes of this row" in refusal(Board(COMMITTED.table, board(entry({BASELINE: BITS})).outcomes))


def test_an_image_of_a_row_is_missing() -> None:
    cut = COMMITTED.outcomes.copy()
    cut.loc[cut["beta"] == "0.9", "outcomes"] = "1" * 199
    assert "expected outcomes of as many images in every row, found {" in refusal(Board(COMMITTED.table, cut))


# --- cells ---


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("robust", float("inf"), "robust: expected "),
        ("robust", 1.5, "robust: expected a number in [0, 1], found 1.5"),
        ("clean", -0.5, "clean: expected "),
        ("delta_pp", -200.0, "delta_pp: expected a number in [-100, 100], found -200.0"),
        ("n", float("inf"), "n: expected "),
        ("n", 1.5, "n: expected a whole number, found 1.5"),
        ("rank", -1, "rank: expected at least 0, found -1"),
        ("beta", 7.0, "beta: expected a number in [0, 1], found 7.0"),
        ("p_value", 2.0, "p_value: expected a number in [0, 1], found 2.0"),
        ("metric", "speed", "metric: expected accuracy, mean_accuracy, mse, found 'speed'"),
        ("family", "curvy", "family: expected relu, smooth, found 'curvy'"),
        ("chosen", "nine", "chosen: expected steerings such as 0.9;0.8/0.3, found 'nine'"),
        ("status", "fine", "status: expected ok, bounded, selected, in-sample, untrusted or failed, found 'fine'"),
    ],
)
def test_a_cell_that_cannot_be_is_named(column: str, value: Any, words: str) -> None:
    with pytest.raises(LeaderboardError) as refused:
        rows_of(edited(BEST, **{column: value}).table)
    assert str(refused.value).startswith(f"m: {words}")


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("outcomes", "x"),
        ("outcomes", "1 2"),
        ("outcomes", ""),
        ("outcomes", "1" * 7),
        ("beta", "x"),
        ("stage", "clean"),
    ],
)
def test_an_outcome_file_that_cannot_be_is_named(column: str, text: str, tmp_path: Path) -> None:
    marks = COMMITTED.outcomes.copy()
    marks.loc[marks["stage"] == "apgd-ce", column] = text
    boards.write(COMMITTED.table, tmp_path / "b.csv", marks)
    with pytest.raises(LeaderboardError, match=r"b\.outcomes\.csv: "):
        outcomes.read(tmp_path / "b.csv")
