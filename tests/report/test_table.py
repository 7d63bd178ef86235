"""The columns: each kind of row has the text that people read, and the value that it is sorted by."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import boards

from harness.leaderboard.row import LeaderboardRow, rows_of
from harness.report import table
from harness.report.formats import AT_MOST, TO
from harness.report.table import TableColumn

BASELINE = boards.untouched("m")
STEERED = boards.point("m", 0.9, 165, 110, gained=12, lost=2, p_holm=0.0123)
PROBE = boards.untouched("m", method="linear_probe", trainable_parameters=965)
LORA = boards.point("m", 1.0, 165, 110, method="lora-4", trainable_parameters=12_345, p_value=0.01, p_holm=0.04)
BOUNDED = boards.bounded("m", 0.8, 160, 96)
HEADLINE = boards.selected("m", "0.9/0.3;0.8", delta_pp=4.0, delta_low=-2.04, delta_high=10.0, gained=6, lost=2,
                           p_value=0.0018, flags="replay;square")  # fmt: skip
MASKED = boards.selected("m", "0.9", status="untrusted", flags="replay")
IN_SAMPLE = boards.selected("m", "0.9", status="in-sample")
FAILED = boards.failed("m", "gone")


def only(row: dict[str, Any]) -> LeaderboardRow:
    (found,) = boards.rows(row)
    return found


@pytest.mark.parametrize(
    ("column", "row", "text"),
    [
        (table.RANK, HEADLINE, ""),
        (table.RANK_OR_STATUS, HEADLINE, "selected"),
        (table.RANK_OR_STATUS, IN_SAMPLE, "in-sample"),
        (table.RANK_OR_STATUS, STEERED, "1"),
        (table.KIND, HEADLINE, "selected"),
        (table.KIND, IN_SAMPLE, "in-sample"),
        (table.KIND, MASKED, "untrusted"),
        (table.RANK_OR_STATUS, MASKED, "untrusted"),
        (table.CHOICE, MASKED, "0.9 (untrusted)"),
        (table.STEERING_OR_FIT, MASKED, "0.9 (untrusted)"),
        (table.KIND, BASELINE, "baseline"),
        (table.KIND, PROBE, "baseline"),
        (table.KIND, STEERED, ""),
        (table.KIND, LORA, ""),
        (table.KIND, BOUNDED, "bounded"),
        (table.KIND, FAILED, "failed"),
        (table.STEERING, BASELINE, "1"),
        (table.STEERING, STEERED | {"c": 0.3}, "0.9, c = 0.3"),
        (table.STEERING, STEERED | {"family": "smooth", "c": 1.0}, "0.9"),
        (table.STEERING, BASELINE | {"family": "smooth", "c": 0.5}, "1"),
        (table.STEERING, LORA, ""),
        (table.STEERING, HEADLINE, "0.9/0.3 0.8"),
        (table.STEERING, FAILED, ""),
        (table.STEERING_OR_METHOD, LORA, "lora-4"),
        (table.STEERING_OR_METHOD, STEERED, "0.9"),
        (table.STEERING_OR_FIT, LORA, "lora-4 (12,345 fitted)"),
        (table.STEERING_OR_FIT, HEADLINE, "0.9/0.3, 0.8"),
        (table.CHOICE, IN_SAMPLE, "0.9 (in-sample)"),
        (table.METHOD, STEERED, ""),
        (table.METHOD, STEERED | {"trainable_parameters": 965}, "ct"),
        (table.METHOD, PROBE, "linear_probe"),
        (table.CLEAN, STEERED, "82.5"),
        (table.CLEAN, BOUNDED, f"{AT_MOST}80.0"),
        (table.CLEAN, STEERED | {"metric": "mse"}, "0.825"),
        (table.CLEAN, FAILED, ""),
        (table.ROBUST, BOUNDED, f"{AT_MOST}48.0"),
        (table.ROBUST, STEERED | {"threat": "clean"}, ""),
        (table.ROBUST_INTERVAL, BASELINE, f"43.1{TO}56.9"),
        (table.ROBUST_INTERVAL, BOUNDED, ""),
        (table.METRIC, STEERED, ""),
        (table.METRIC, STEERED | {"metric": "mse"}, "mse"),
        (table.BASELINE, HEADLINE, "48.0"),
        (table.DELTA, STEERED, "+5.0"),
        (table.DELTA, HEADLINE | {"delta_pp": -0.04}, "+0.0"),
        (table.DELTA, HEADLINE | {"delta_pp": -1.5, "metric": "mse"}, "−0.015"),
        (table.DELTA, BASELINE, ""),
        (table.DELTA, BOUNDED, ""),
        (table.DELTA_OR_BASELINE, BASELINE, "baseline"),
        (table.DELTA_OR_BASELINE, BOUNDED, ""),
        (table.DELTA_INTERVAL, HEADLINE, f"−2.0{TO}+10.0"),
        (table.DELTA_INTERVAL, BASELINE, ""),
        (table.GAINED_AND_LOST, STEERED, "12/2"),
        (table.GAINED_AND_LOST, BASELINE, ""),
        (table.P_VALUE, STEERED, "0.5"),
        (table.P_VALUE, LORA, "0.01"),
        (table.P_VALUE, HEADLINE, "0.0018"),
        (table.P_VALUE, BASELINE, ""),
        (table.P_HOLM, STEERED, "0.012"),
        (table.P_HOLM, LORA, "0.04"),
        (table.P_HOLM, HEADLINE | {"p_holm": 0.0036}, "0.0036"),
        (table.P_HOLM, BASELINE, ""),
        (table.STEERED, STEERED, "17/17"),
        (table.STEERED, FAILED, ""),
        (table.TRAINED, LORA, "12,345"),
        (table.TRAINED, STEERED, ""),
        (table.FLAGS, HEADLINE, "replay square"),
    ],
)
def test_a_cell_has_the_text_that_people_read(column: TableColumn, row: dict[str, Any], text: str) -> None:
    assert column.cell(only(row)).text == text


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [
        (table.STEERING, HEADLINE, 0.8),
        (table.CLEAN, BOUNDED, 0.8),
        (table.DELTA_INTERVAL, HEADLINE, -2.04),
        (table.MODEL, STEERED, "m"),
        (table.FLAGS, STEERED, None),
        (table.ROBUST, FAILED, None),
        (table.P_HOLM, LORA, 0.04),
    ],
)
def test_a_cell_is_sorted_by_its_number_and_an_empty_one_comes_last(
    column: TableColumn, row: dict[str, Any], value: float | str | None
) -> None:
    assert column.cell(only(row)).value == value


def test_a_column_that_no_row_fills_is_left_out_and_the_others_keep_their_order() -> None:
    rows = rows_of(boards.hard())
    shown = [column.heading for column in table.filled(table.PAGE, rows)]
    assert shown == [
        "rank", "model", "β", "row", "clean", "robust", "95 %", "Δ", "95 % of Δ", "gained", "lost", "p", "p (Holm)",
        "AA", "steered", "flags", "seconds",
    ]  # fmt: skip
    lines = table.lines(table.filled(table.PAGE, rows), rows)
    assert {len(line.cells) for line in lines} == {len(shown)}
    assert [line.kind for line in lines if line.model == "loser"] == ["selected", "baseline", "steered"]
    assert [line.flagged for line in lines].count(True) == sum(bool(row.flags) for row in rows)
