"""A board survives the way to its file and back, and no other file is taken for a board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.boards import write
from helpers.scores import SHARED, entry, score
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import FileError, LeaderboardError
from harness.leaderboard.csv_file import read, to_csv
from harness.leaderboard.ranking import board
from harness.leaderboard.row import FORMATS, TEXT
from harness.leaderboard.scores import ModelEntry

COMMITTED = sorted((Path(__file__).parents[2] / "leaderboards").glob("*.csv"))
BOARDS = [path for path in COMMITTED if not path.name.endswith(".outcomes.csv") and path.name != "coverage.csv"]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_committed_board_is_written_again_byte_for_byte(path: Path, tmp_path: Path) -> None:
    write(read(path), tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()


names = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12)


@settings(max_examples=30)
@given(names, st.lists(st.floats(0, 1), min_size=4, max_size=4), st.floats(0, 0.999))
def test_a_board_survives_the_way_to_a_file_and_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, values: list[float], beta: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.csv"
    shared = SHARED | {"model": name}
    plain, steered = score(1.0, [1, 0, 0, 1], values), score(beta, [0, 1, 1, 1], [1, 1, 0, 1])
    table = board([entry(plain, steered, shared=shared), ModelEntry(shared, failure=name)])
    write(table, path)
    back = read(path)
    assert to_csv(back) == to_csv(table)
    for column, kind in FORMATS.items():
        for before, after in zip(table[column], back[column], strict=True):
            if kind == "s":
                assert after == ("" if pd.isna(before) else before)
            elif pd.isna(before):
                assert pd.isna(after)
            else:
                assert after == pytest.approx(before, abs=0.05 if column == "seconds" else 1e-4, rel=1e-4)


@pytest.mark.parametrize("name", ["a,b", 'say "a"', "two\nlines", "β ↦ φ, «naïve»", "NA", "", "nan", "1.0", " a "])
def test_awkward_model_names_come_back(tmp_path: Path, name: str) -> None:
    write(board([entry(score(1.0, [1] * 4, [1] * 4), shared=SHARED | {"model": name})]), tmp_path / "b.csv")
    assert read(tmp_path / "b.csv")["model"].tolist() == [name]


def test_a_model_name_with_a_carriage_return_comes_back(tmp_path: Path) -> None:
    # Once: csv.writer leaves "\r" unquoted where lines end with "\n", and pandas takes it for the end of the row.
    test_awkward_model_names_come_back(tmp_path, "a\rb")


def test_a_table_keeps_text_as_text(tmp_path: Path) -> None:
    write(board([entry(score(1.0, [1] * 4, [1] * 4), shared=SHARED | {"data_sha256": "0123"})]), tmp_path / "b.csv")
    back = read(tmp_path / "b.csv")
    assert all(isinstance(value, str) for name in TEXT for value in back[name])
    assert back["data_sha256"][0] == "0123"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = board([entry(score(1.0, [1] * 4, [1] * 4))])
    write(table, tmp_path / "b.csv")
    before = (tmp_path / "b.csv").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.util.files.os.replace", full)
    with pytest.raises(FileError, match=r"b\.csv: cannot be written: .*No space left.*choose another"):
        write(pd.concat([table, table]), tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"b\.csv: cannot be read.*No such file"),
        ("", r"b\.csv: cannot be read.*No columns"),
        ("rank,model\n1,m\n", r"b\.csv: not a leaderboard.*method, beta, c, smoothing, family, clean"),
        ('a\n"b\n', r"b\.csv: cannot be read"),
        ("\xff\xfe", r"b\.csv: cannot be read"),
    ],
)
def test_a_file_that_is_no_leaderboard_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "b.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(LeaderboardError, match=message):
        read(tmp_path / "b.csv")


def test_a_board_of_an_earlier_version_is_refused_by_the_names_of_its_columns(tmp_path: Path) -> None:
    text = to_csv(board([entry(score(1.0, [1] * 4, [1] * 4))])).replace("forward_passes,backward_passes", "batch_size")
    (tmp_path / "b.csv").write_text(text.replace(",9,3,", ",2,"))
    with pytest.raises(LeaderboardError) as error:
        read(tmp_path / "b.csv")
    for piece in (
        "b.csv",
        "no column forward_passes, backward_passes",
        "unknown column batch_size",
        "run its benchmark",
    ):
        assert piece in str(error.value)


@pytest.mark.parametrize("text", ["all", "nan"])
def test_text_where_a_number_belongs_is_named(tmp_path: Path, text: str) -> None:
    # Once: read() lets text in a numeric column pass; `show` then ends in a ValueError's traceback.
    write(board([entry(score(1.0, [1] * 4, [1] * 4))]), tmp_path / "b.csv")
    (tmp_path / "b.csv").write_text((tmp_path / "b.csv").read_text().replace("1.000000", text))
    with pytest.raises(LeaderboardError, match=rf"b\.csv: .*: clean: expected a number, found '{text}'"):
        read(tmp_path / "b.csv")
