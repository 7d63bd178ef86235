"""The site: an index of all boards, whose every address leads somewhere, and the same bytes each time."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from helpers import boards
from helpers.commands import Command

from harness.checks import zoo_coverage
from harness.checks.zoo_coverage import Audit
from harness.errors import LeaderboardError
from harness.report import site

OUTCOMES = pd.DataFrame(
    [("m", "untouched", "1", "0.5", "clean", "10")], columns=["model", "method", "beta", "c", "stage", "outcomes"]
)
AUDITS = [
    Audit("cifar10", "Linf", "A", "yes", "1", "relu:3", "3", "3", "0", "0", "yes", "1"),
    Audit("cifar10", "Linf", "B", "yes", "1", "silu:2", "0", "0", "0", "2", "no: silu", "1"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two boards, one with outcomes and a name that is no address as it is; and a table of coverage."""
    there = tmp_path / "leaderboards"
    small = boards.table(boards.selected("m", "0.9", delta_pp=2.0), boards.untouched("m"))
    boards.write(small, there / "a #1?.csv", OUTCOMES)
    boards.write(boards.hard(), there / "index.csv")
    (there / "coverage.csv").write_text(zoo_coverage.to_csv(AUDITS), encoding="utf-8")
    return there


def test_the_files_to_download_are_the_boards_byte_by_byte(folder: Path, tmp_path: Path) -> None:
    """Also where a name has a line's end in it, which reading text would change."""
    odd = "two\rlines\r\nor three"
    boards.write(boards.table(boards.selected(odd, "0.9"), boards.untouched(odd)), folder / "odd.csv", OUTCOMES)
    site.build(boards.all_stored(folder), tmp_path / "site")
    for name in ("odd.csv", "odd.outcomes.csv", "index.csv"):
        assert (tmp_path / "site" / site.BOARDS / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "site" / site.COVERAGE).read_bytes() == (folder / site.COVERAGE).read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_site_has_a_page_and_the_files_of_each_board(folder: Path, tmp_path: Path) -> None:
    written = site.build(boards.all_stored(folder), tmp_path / "site")
    found = files(tmp_path / "site")
    assert set(found) == {
        "index.html", "coverage.csv", "boards/a #1?.html", "boards/a #1?.csv", "boards/a #1?.outcomes.csv",
        "boards/index.html", "boards/index.csv",
    }  # fmt: skip
    assert {str(path.relative_to(tmp_path / "site")) for path in written} == set(found)
    assert found["boards/a #1?.csv"] == (folder / "a #1?.csv").read_bytes()
    assert found["boards/a #1?.outcomes.csv"] == (folder / "a #1?.outcomes.csv").read_bytes()
    assert found["coverage.csv"] == (folder / "coverage.csv").read_bytes()


def test_every_address_is_relative_and_leads_to_a_file(folder: Path, tmp_path: Path) -> None:
    site.build(boards.all_stored(folder), tmp_path / "site")
    seen = 0
    for page in (tmp_path / "site").rglob("*.html"):
        for link in boards.parsed(page.read_text(encoding="utf-8")).all("a"):
            address = str(link.attributes["href"])
            if not address.startswith("#"):
                assert not address.startswith(("/", "http", "file"))
                assert (page.parent / unquote(urlsplit(address).path)).is_file(), address
                seen += 1
    assert seen == 6 + 3 + 2  # of the index, and of each board's page


def test_the_index_tells_what_each_board_found(folder: Path, tmp_path: Path) -> None:
    site.build(boards.all_stored(folder), tmp_path / "site")
    page = boards.parsed((tmp_path / "site/index.html").read_text(encoding="utf-8"))
    (table,) = page.all("table", id="index")
    first, second = table.all("tr")[1:]
    assert [cell.text for cell in first.children] == [
        "a #1?", "cifar10[:200]", "Linf, ε = 0.0313725", "1", "1 without evidence +2.0 m",
        "0", "CSV outcomes",
    ]  # fmt: skip
    texts = [cell.text for cell in second.children]
    assert (texts[0], texts[3], texts[5], texts[6]) == ("index", "4", "3", "CSV")
    assert texts[4] == (
        "1 gain, 1 without evidence, 1 loss, 1 not scored "
        f"+6.0 WideResNet-28-10 with a rather long name +0.0 {boards.SCRIPT} −4.0 loser – gone $x_1$"
    )
    (coverage_of,) = page.all("table", id="reach")
    assert [[cell.text for cell in row.children] for row in coverage_of.all("tr")[1:]] == [
        ["cifar10/Linf", "2", "2", "1", "0", "1", "1", "0", "1"],
        ["all", "2", "2", "1", "0", "1", "1", "0", "1"],
    ]


def test_without_a_table_of_coverage_there_is_no_word_of_it(folder: Path, tmp_path: Path) -> None:
    (folder / "coverage.csv").unlink()
    site.build(boards.all_stored(folder), tmp_path / "site")
    assert "RobustBench" not in (tmp_path / "site/index.html").read_text(encoding="utf-8")


def test_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    site.build(boards.all_stored(folder), tmp_path / "one")
    site.build(boards.all_stored(folder), tmp_path / "two")
    site.build(boards.all_stored(folder), tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_boards_is_refused(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty/x.outcomes.csv").write_text("")
    with pytest.raises(LeaderboardError, match=r"empty: .*\*\.csv.*found none.*`ct-harness run`"):
        site.read(tmp_path / "empty")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("name", ["other.csv", "a #1?.outcomes.csv", "coverage.csv"])
def test_a_file_that_is_not_what_its_name_says_is_named_and_nothing_is_written(
    folder: Path, tmp_path: Path, name: str
) -> None:
    (folder / name).write_text("a,b\n1,2\n")
    with pytest.raises(LeaderboardError) as raised:
        site.build(boards.all_stored(folder), tmp_path / "site")
    assert str(raised.value).startswith(f"{folder / name}: not a")
    assert not (tmp_path / "site").exists()


def test_a_file_that_is_no_board_is_to_be_taken_out(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(LeaderboardError, match=f"other.csv: not a.*; take the file out of {tmp_path}"):
        site.read(tmp_path)


# --- the command ---


def test_site_writes_the_folder_and_ends_with_the_codes_of_the_others(
    command: Command, here: Path, folder: Path
) -> None:
    shutil.copytree(folder, here / "boards", ignore=shutil.ignore_patterns("*.outcomes.csv"))  # which contradict
    ended = command("site", "boards", "-o", "out")
    assert (ended.code, ended.out) == (0, "written: out/index.html\n")
    assert command("site", "boards").code == 0
    assert files(here / "site") == files(here / "out")
    (here / "none").mkdir()
    ended = command("site", "none")
    assert ended.code == 2
    assert ended.err.startswith("error: none: expected leaderboards")
