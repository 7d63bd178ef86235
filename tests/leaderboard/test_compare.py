"""Comparisons of two boards, and of one with itself: paired where they can be, and silent where they make no sense."""

from __future__ import annotations

import pytest
from helpers.gate import BITS, COMMITTED, GRID, SHARED, board, entry, flip

from harness.analysis.statistics import paired
from harness.api.records import BASELINE
from harness.leaderboard import compare


def test_comparison_of_two_boards_is_paired_where_it_can_be() -> None:
    other = board(entry(GRID | {BASELINE: flip(BITS, 4, 1)}, SHARED | {"seed": 1}))
    found = compare.between(COMMITTED.table, other.table, COMMITTED.outcomes, other.outcomes)
    (row,) = (row for row in found.rows if row.beta == 1.0)
    expected = paired(BITS, flip(BITS, 4, 1))
    assert (row.gained, row.lost, row.test) == (1, 4, "paired")
    assert row.robust_pp == pytest.approx(-1.5)
    assert row.p_value == pytest.approx(expected.p_value)
    assert found.differences == ("seed: 0 against 1",)
    without = compare.between(COMMITTED.table, other.table)
    assert {row.test for row in without.rows} == {"unpaired"}
    assert any("no outcome file" in sentence for sentence in without.differences)


def test_comparison_names_what_makes_no_sense() -> None:
    far = board(entry(GRID, SHARED | {"eps": "0.2"}))
    found = compare.between(COMMITTED.table, far.table, COMMITTED.outcomes, far.outcomes)
    assert found.differences == ("eps: 0.1 against 0.2: robust accuracies are not compared",)
    assert [(row.clean_pp, row.robust_pp, row.test) for row in found.rows] == [(0, None, None)] * 2
    other = board(entry(GRID, SHARED | {"dataset": "cifar10[:200]", "data_sha256": "e" * 64}))
    found = compare.between(COMMITTED.table, other.table)
    assert found.rows == ()
    assert "other data, so nothing is compared" in found.differences[0]
    grown = board(entry(GRID, SHARED | {"dataset": "digits[:300]", "data_sha256": "e" * 64}))
    found = compare.between(COMMITTED.table, grown.table, COMMITTED.outcomes, grown.outcomes)
    assert {row.test for row in found.rows} == {"unpaired"}
    lone = board(entry({BASELINE: BITS}))
    assert compare.between(COMMITTED.table, lone.table).only_first == (("m", "ct", 0.9, 0.5),)


def test_comparison_within_a_board() -> None:
    (row,) = compare.within(COMMITTED.table).to_dict("records")
    assert (row["chosen"], row["gained"], row["lost"]) == ("0.9", 5, 3)
    assert row["baseline"] == pytest.approx(BITS.mean(), abs=1e-6)


def test_the_table_of_a_comparison_has_a_column_for_each_field() -> None:
    found = compare.between(COMMITTED.table, COMMITTED.table, COMMITTED.outcomes, COMMITTED.outcomes)
    table = found.table()
    assert tuple(table.columns) == compare.RowComparison._fields
    assert [tuple(row) for row in table.itertuples(index=False)] == [tuple(row) for row in found.rows]
