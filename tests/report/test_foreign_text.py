"""Names and errors of others, with whatever characters: what a board makes of them is XML, and a line."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import pytest
from helpers import boards
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.analysis.metrics import METRICS
from harness.leaderboard import csv_file, ranking
from harness.leaderboard.regression import RowVerdict
from harness.leaderboard.row import RowKey, rows_of
from harness.leaderboard.scores import ModelEntry
from harness.report import ci_summary, curves, plot
from harness.util.text import cleaned

COLOURED = "\x1b[1m\x1b[31mexpected\x1b[0m float16 images"
TITLED = "\x1b]0;owned\x07m"
FOREIGN = st.text(st.characters(codec=None, categories=None), min_size=1, max_size=20)
"""Control characters and lone surrogates too."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (COLOURED, "expected float16 images"),
        (TITLED, "m"),
        ("a\r\nb\x00c\ud800d", "a  b c d"),
        ("β = 0.9 µ≤", "β = 0.9 µ≤"),
    ],
)
def test_escape_sequences_go_and_other_control_characters_are_spaces(text: str, expected: str) -> None:
    assert cleaned(text) == expected


@given(text=FOREIGN)
@example(COLOURED)
@example("\x00\ufffe\ud800")
def test_junit_is_xml_whatever_a_row_and_its_error_say(text: str) -> None:
    verdict = RowVerdict(RowKey(text, "ct", 0.9, 0.5).name, "regressed", f"it failed: {text}")
    [[case]] = ElementTree.fromstring(ci_summary.junit(text, [verdict]).encode())
    assert case.get("name") == cleaned(f"{text} β=0.9")
    [failure] = case
    assert failure.text == failure.get("message") == cleaned(f"it failed: {text}")


@given(text=FOREIGN)
@example(COLOURED)
@settings(max_examples=15)
def test_a_picture_is_xml_whatever_the_model_is_called(text: str) -> None:
    table = boards.table(boards.untouched(f"m{text}"), boards.point(f"m{text}", 0.9, 168, 104))
    panels = curves.panels(rows_of(table))
    ElementTree.fromstring(plot.svg(plot.draw(panels, {f"other{cleaned(text)}": cleaned(text)})).encode())


@given(text=FOREIGN)
@example(COLOURED)
@settings(max_examples=30)
def test_the_reason_of_a_failure_is_one_clean_line_of_the_board(text: str) -> None:
    entry = ModelEntry({"model": "m", "metric": METRICS["class"].name}, failure=text)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "board.csv"
        boards.write(ranking.board([entry]), path)
        [row] = rows_of(csv_file.read(path))
    assert row.status == " ".join(cleaned(f"failed: {text}").split())
