"""Typed rows: every cell of the CSV, and the kind of row that follows from status and method alone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from helpers import boards

from harness.analysis.metrics import METRICS
from harness.errors import LeaderboardError
from harness.leaderboard.csv_file import read_rows
from harness.leaderboard.row import FORMATS, LeaderboardRow, RowKind, baseline_of, by_model, failures_of, rows_of

COMMITTED = sorted((Path(__file__).parents[2] / "leaderboards").glob("*.outcomes.csv"))


def only(row: dict[str, Any]) -> LeaderboardRow:
    (found,) = boards.rows(row)
    return found


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name.partition(".")[0])
def test_every_cell_of_a_committed_board_is_written_as_it_was_read(path: Path) -> None:
    board = path.with_name(path.name.replace(".outcomes", ""))
    with board.open(encoding="utf-8", newline="") as file:
        texts = list(csv.DictReader(file))
    assert [{column: row.written(column) for column in FORMATS} for row in read_rows(board)] == texts


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (boards.untouched("m"), "baseline"),
        (boards.untouched("m", p_holm=0.5), "baseline"),
        (boards.untouched("m", method="linear_probe"), "baseline"),
        (boards.point("m", 0.9, 160, 110), "steered"),
        (boards.point("m", 0.9, 160, 110, p_holm=None), "steered"),
        (boards.point("m", 1.0, 160, 110, method="lora-4"), "adapted"),
        (boards.bounded("m", 0.9, 160, 110), "bounded"),
        (boards.bounded("m", 1.0, 160, 110, method="lora-4"), "bounded"),
        (boards.selected("m", "0.9"), "selected"),
        (boards.selected("m", "0.9", status="in-sample"), "in_sample"),
        (boards.failed("m", "gone"), "failed"),
    ],
)
def test_the_kind_follows_from_status_and_method_and_not_from_a_missing_p(row: dict[str, Any], kind: RowKind) -> None:
    assert only(row).kind == kind


def test_what_follows_from_a_row() -> None:
    headline = only(boards.selected("m", "0.9;0.8/0.3", flags="replay;square"))
    assert (headline.is_headline, headline.is_finished, headline.is_adapted) == (True, False, False)
    assert (headline.chosen, headline.chosen_betas) == (("0.9", "0.8/0.3"), (0.9, 0.8))
    assert headline.flags == ("replay", "square")
    bounded = only(boards.bounded("m", 1.0, 160, 110, method="lora-4", threat="clean", metric="mse"))
    assert (bounded.is_adapted, bounded.is_attacked, bounded.metric) == (True, False, METRICS["values"])
    assert (bounded.key, bounded.key.name) == (("m", "lora-4", 1.0, 0.5), "m lora-4")
    assert only(boards.point("m", 0.9, 160, 110, c=0.3)).key.name == "m β=0.9 c=0.3"
    failed = only(boards.failed("m", "no such file"))
    assert (failed.failure, failed.robust, failed.chosen, failed.flags) == ("no such file", None, (), ())


def test_rows_are_grouped_by_model_in_the_boards_order() -> None:
    rows = rows_of(boards.hard())
    assert [(model, len(own)) for model, own in by_model(rows).items()] == [
        ("WideResNet-28-10 with a rather long name", 7), (boards.SCRIPT, 3), ("loser", 3), ("gone $x_1$", 1),
    ]  # fmt: skip
    assert list(failures_of(rows)) == ["gone $x_1$"]
    assert baseline_of(by_model(rows)["loser"]).kind == "baseline"


@pytest.mark.parametrize("others", [0, 2])
def test_a_model_has_exactly_one_baseline(others: int) -> None:
    rows = boards.rows(boards.point("m", 0.9, 1, 1), *[boards.untouched("m")] * others)
    with pytest.raises(LeaderboardError, match=rf"^m: .*untouched network, found {others}; run the benchmark again"):
        baseline_of(rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "fine"}, ("m: status", "'fine'")),
        ({"metric": "f1"}, ("metric", "'f1'", "accuracy")),
        ({"robust": None}, ("m: robust", "found none")),
        ({"delta_low": None}, ("m: delta_low", "found none")),
        ({"status": "bounded", "beta": None}, ("m: beta", "found none")),
    ],
)
def test_a_row_that_cannot_be_one_is_refused_with_its_file(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    path = boards.write(boards.table(boards.point("m", 0.9, 160, 110) | changes), tmp_path / "x.csv")
    with pytest.raises(LeaderboardError) as raised:
        read_rows(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("run the benchmark again")
    assert all(word in message for word in words)
