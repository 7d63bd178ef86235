"""A board is as it was written: any edit is noticed, other digits of the same numbers are none."""

from __future__ import annotations

import shutil
from itertools import cycle
from pathlib import Path

import pandas as pd
import pytest
from helpers.commands import Command
from helpers.gate import COMMITTED

from harness.errors import LeaderboardError
from harness.leaderboard import board_files, csv_file, outcomes
from harness.leaderboard.row import FORMATS

SHIPPED = Path(__file__).parents[2] / "leaderboards"
OTHER = {"d": 7, ".3g": 0.5, ".6g": 0.25, ".6f": 0.123, "+.4f": 1.5, ".4g": 0.04, ".4f": 0.75, ".1f": 9.5, "s": "other"}
"""Another value for a column of each format."""
ODD = {"metric": "mean_accuracy", "family": "smooth", "chosen": "0.7;0.7", "status": "bounded"}


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A copy of a committed board."""
    for file in board_files.files_of(SHIPPED / "digits_linf.csv").values():
        shutil.copy(file, tmp_path)
    return tmp_path / "digits_linf.csv"


def test_an_edit_of_any_column_is_noticed(board: Path) -> None:
    """In a headline, a row of the grid and a baseline by turns."""
    table = csv_file.read(board)
    for row, (column, form) in zip(cycle((0, 1, 5)), FORMATS.items(), strict=False):
        values = table[column].tolist()
        values[row] = ODD.get(column, OTHER[form])
        edited = table.assign(**{column: values})
        board.write_text(csv_file.to_csv(edited))
        with pytest.raises(LeaderboardError) as refused:
            board_files.read(board)
        assert str(board) in str(refused.value), column


def test_an_edit_that_the_outcomes_do_not_tell_of_says_what_to_do(board: Path) -> None:
    board.write_text(board.read_text().replace(",2.14.1,", ",2.14.2,", 1))
    with pytest.raises(LeaderboardError) as refused:
        board_files.read(board)
    assert str(refused.value) == (
        f"{board}: expected what was written together with digits_linf.question.yaml and digits_linf.outcomes.csv, "
        "found other values; run the benchmark again, or restore all of these files"
    )


@pytest.mark.parametrize(("old", "new"), [("seed: 0", "seed: 1"), ("git: ", "git: 0"), ("  board: ", "  board: 0")])
def test_an_edited_question_is_named(board: Path, old: str, new: str) -> None:
    question = board_files.question_of(board)
    question.write_text(question.read_text().replace(old, new))
    with pytest.raises(LeaderboardError, match=r"digits_linf\.question\.yaml|digits_linf\.csv"):
        board_files.read_whole(board)


def test_outcomes_that_are_all_of_another_run_are_named(board: Path) -> None:
    table, marks = csv_file.read(board), outcomes.read(board)
    assert marks is not None
    other = marks["stage"] == "apgd-t"
    marks.loc[other, "stage"] = "apgd"  # from which the same numbers follow
    outcomes.path_of(board).write_text(outcomes.to_csv(marks))
    with pytest.raises(LeaderboardError, match=r"digits_linf\.outcomes\.csv: expected what was written together"):
        board_files.read(board)
    assert csv_file.to_csv(table) == board.read_text()


def test_a_spreadsheet_that_saves_the_same_numbers_has_edited_nothing(board: Path) -> None:
    for path, found in ((board, csv_file.read(board)), (outcomes.path_of(board), outcomes.read(board))):
        assert found is not None
        found.to_csv(path, index=False, encoding="utf-8-sig", lineterminator="\r\n", quoting=1)
    question = board_files.question_of(board)
    question.write_bytes(question.read_bytes().replace(b"\n", b"\r\n"))
    assert board_files.read(board).doubt == ""


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    board_files.write(COMMITTED, tmp_path / "x.csv", "question: '1'\n")
    stored = board_files.read(tmp_path / "x.csv")
    assert stored.doubt == ""
    pd.testing.assert_frame_equal(stored.table, csv_file.read(tmp_path / "x.csv"))


# --- files that are not there ---


def test_a_lone_board_is_shown_with_a_warning_and_not_judged(board: Path, command: Command) -> None:
    outcomes.path_of(board).unlink()
    board_files.question_of(board).unlink()
    for arguments in (("show",), ("report",), ("plot",), ("export", "--json"), ("compare",)):
        ended = command(*arguments, str(board))
        assert ended.code == 0
        assert ended.err == (
            f"warning: {board}: not held against what was computed: digits_linf.outcomes.csv is missing and "
            "digits_linf.question.yaml is missing\n"
        )
    with pytest.raises(LeaderboardError, match="is missing; commit all three files"):
        board_files.read_whole(board)


def test_a_lone_board_with_a_row_twice_or_without_a_baseline_is_refused_by_name(tmp_path: Path) -> None:
    lone, table = tmp_path / "lone.csv", csv_file.read(SHIPPED / "digits_linf.csv")
    for rows, told in (
        (pd.concat([table, table[-1:]]), "expected one row, found 2"),
        (table[table["method"] != "untouched"], "expected one row of the untouched network, found 0"),
    ):
        lone.write_text(csv_file.to_csv(rows))
        with pytest.raises(LeaderboardError, match=rf"lone\.csv: .*{told}"):
            board_files.read(lone)


def test_without_digests_an_edit_is_still_noticed_by_the_outcomes(board: Path) -> None:
    board_files.question_of(board).unlink()
    board.write_text(board.read_text().replace(",0.420000,", ",0.920000,", 1))
    with pytest.raises(LeaderboardError, match=r"digits_linf\.csv: .*robust: .*which follows from the outcome file"):
        board_files.read(board)


def test_a_board_without_digests_is_not_judged(board: Path) -> None:
    question = board_files.question_of(board)
    question.write_text(question.read_text()[:-10])
    assert "has no digests (sha256) at its end" in board_files.read(board).doubt
    with pytest.raises(LeaderboardError, match="no digests"):
        board_files.read_whole(board)


@pytest.mark.parametrize("arguments", [("show",), ("report",), ("plot",), ("export", "--latex"), ("compare",)])
def test_every_command_that_reads_a_board_refuses_an_edited_one(
    board: Path, command: Command, arguments: tuple[str, ...]
) -> None:
    board.write_text(board.read_text().replace(",0.438,", ",0.038,", 1))  # p_holm
    for words in ((*arguments, str(board)), ("site", str(board.parent)), ("paper", str(board.parent))):
        ended = command(*words)
        assert ended.code == 2
        assert ended.err.startswith(f"error: {board}: expected what was written together with ")
    assert {path.name for path in board.parent.iterdir()} == {
        "digits_linf.csv", "digits_linf.outcomes.csv", "digits_linf.question.yaml", "images.npz",
    }  # fmt: skip
