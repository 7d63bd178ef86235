"""Other programs read the same board: each form is read back by its own reader."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from helpers import boards
from helpers.commands import Command

from harness.errors import LeaderboardError
from harness.leaderboard import csv_file
from harness.leaderboard.row import FORMATS
from harness.report.export import to_json, to_latex, to_parquet

COUNTS = {name for name, kind in FORMATS.items() if kind == "d"}


@pytest.fixture
def board(here: Path) -> Path:
    """With bounds, flags, folds and a failed model."""
    return boards.write(boards.hard(), here / "hard.csv")


def same(found: object, written: object) -> bool:
    missing = written is None or (isinstance(written, float) and math.isnan(written))
    return found is None if missing else found == written


def test_json_has_every_cell_of_the_csv(board: Path) -> None:
    table = csv_file.read(board)
    rows = json.loads(to_json(table))
    assert [list(row) for row in rows] == [list(FORMATS)] * len(table)
    for row, (_, expected) in zip(rows, table.iterrows(), strict=True):
        assert all(same(row[name], expected[name]) for name in row)
        assert all(isinstance(row[name], int) for name in COUNTS if row[name] is not None)


def test_parquet_has_the_same_cells_and_their_types(board: Path, tmp_path: Path) -> None:
    table = csv_file.read(board)
    (tmp_path / "board.parquet").write_bytes(to_parquet(table))
    found = pd.read_parquet(tmp_path / "board.parquet")
    assert {name for name in found if found[name].dtype == "Int64"} == COUNTS
    pd.testing.assert_frame_equal(found.astype(table.dtypes), table)


def test_latex_has_the_untouched_network_and_the_headline_of_each_model(board: Path) -> None:
    lines = to_latex(csv_file.read(board)).splitlines()
    assert lines[:3] == [
        r"\begin{tabular}{lrrrrr}",
        r"\toprule",
        r"model & $\beta$ & clean (\%) & robust (\%) & $\Delta$ (points) & $p$ (Holm) \\",
    ]
    cells = [line.removesuffix(r" \\").split(" & ") for line in lines[4:-2]]
    assert {len(row) for row in cells} == {6}
    assert [(row[0], row[1], row[4], row[5]) for row in cells] == [
        ("WideResNet-28-10 with a rather long name", "1", "", ""),
        ("WideResNet-28-10 with a rather long name", "0.9/0.3, 0.9, 0.9, 0.8, 0.9", "+6.0 [+2.2, +10.0]", "0.0018"),
        ("<script>alert(1)</script>", "1", "", ""),
        ("<script>alert(1)</script>", "1", "+0.0 [+0.0, +0.0]", "1"),
        ("loser", "1", "", ""),
        ("loser", "0.5", "-4.0 [-7.0, -1.2]", "0.021"),
    ]
    assert cells[0][2:4] == ["85.0", "50.0 [43.1, 56.9]"]


def test_latex_prints_names_as_they_are() -> None:
    name = r"50%_of & $x^2$ #1 {a} ~ \b"
    text = to_latex(boards.table(boards.selected(name, "1"), boards.untouched(name)))
    (cell,) = {line.split(" & $")[0].rpartition(" & 1")[0] for line in text.splitlines() if "85.0" in line}
    assert not re.search(r"(?<!\\)[%&#_]", cell)
    assert r"\$" in cell


def test_latex_has_nothing_to_say_where_every_model_failed() -> None:
    with pytest.raises(LeaderboardError, match=r"^--latex: no model was scored.*`ct-harness show`"):
        to_latex(boards.table(boards.failed("m", "gone")))


@pytest.mark.parametrize(("form", "suffix"), [("json", ".json"), ("parquet", ".parquet"), ("latex", ".tex")])
def test_the_command_writes_beside_the_board_or_where_it_is_told(
    board: Path, command: Command, form: str, suffix: str
) -> None:
    assert command("export", str(board), f"--{form}").code == 0
    assert command("export", str(board), f"--{form}", "-o", "deep/other").code == 0
    assert board.with_suffix(suffix).read_bytes() == Path("deep/other").read_bytes() != b""


@pytest.mark.parametrize("forms", [[], ["--json", "--latex"]])
def test_one_form_at_a_time(board: Path, command: Command, forms: list[str]) -> None:
    ended = command("export", str(board), *forms)
    assert ended.code == 2
    assert all(word in ended.err for word in ("--json", "--parquet", "--latex", f"found {len(forms)}"))


def test_without_pyarrow_it_says_what_to_install(
    board: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    ended = command("export", str(board), "--parquet")
    assert ended.code == 2
    assert "\nerror: --parquet: " in ended.err
    assert "pip install 'ct-harness[parquet]'" in ended.err
