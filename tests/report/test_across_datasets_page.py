"""Several boards summed up as people read them: cells, the page, the commands, and their place in the site."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import boards
from helpers.commands import Command

from harness.leaderboard.across_datasets import AcrossDatasets, SettingSummary, sum_up
from harness.leaderboard.row import rows_of
from harness.report import across_datasets_page, site
from harness.report.across_datasets_page import cells, datasets_behind, headings
from harness.report.formats import TO


def summed(tables: Mapping[str, pd.DataFrame]) -> AcrossDatasets:
    return sum_up({name: rows_of(table) for name, table in tables.items()})


def only(found: AcrossDatasets) -> SettingSummary:
    (summary,) = found.settings
    return summary


# --- the cells ---


def test_what_people_read() -> None:
    ct, lora = (cells(row) for row in only(summed(boards.three_transfers())).methods)
    assert ct == ("m", "ct", "3", "46.67", "48.67", "+2.00", f"−5.45{TO}+9.45", "2/0/1", "1", "+17.58", f"965{TO}7,690")
    assert lora[5:] == ("−0.50", f"−6.85{TO}+5.85", "0/1/1", "1", "−1.00", "1,100")
    assert headings(only(summed(boards.three_transfers())))[3] == "probe"


def test_the_sets_behind_the_means_stand_alone() -> None:
    heads, lines = datasets_behind(only(summed(boards.three_transfers())))
    assert heads == ("probe", "selected", "Δ", "95 % of Δ", "p", "Δ lora-1")
    assert [(line.dataset, line.board) for line in lines] == [("beans", "a"), ("dtd[:200]", "b"), ("mnist", "c")]
    assert lines[0].cells == ("50.0", "52.0", "+2.0", f"−1.0{TO}+4.0", "0.5", "−1.0")
    assert lines[2].cells[-1] == "–"


def test_where_there_is_no_number_there_is_a_dash() -> None:
    (alone,) = only(summed({"a": boards.transfer("beans", 50, 2.0)})).methods
    assert cells(alone)[6] == "–", "no interval over one set"
    tables = {"a": boards.transfer("beans", 0, 7.0), "b": boards.transfer("dtd", 50, 1.0)}
    (from_zero,) = only(summed(tables)).methods
    assert cells(from_zero)[9] == "–", "no relative gain over a baseline of zero"
    assert cells(only(summed(boards.three_transfers())).methods[1])[2] == "2 of 3"


# --- the page ---


def shown(tables: dict[str, pd.DataFrame], **options: Any) -> boards.Element:
    return boards.parsed(across_datasets_page.page(summed(tables), **options))


def texts(table: boards.Element) -> list[list[str]]:
    return [[cell.text for cell in row.children] for row in table.all("tr")]


def test_the_page_has_the_means_and_the_sets() -> None:
    page = shown(boards.three_transfers(), links={"all boards": "index.html"}, pages={"a": "boards/a.html"})
    found = only(summed(boards.three_transfers()))
    means = [[text.replace("\N{NO-BREAK SPACE}", " ") for text in cells(row)] for row in found.methods]
    assert texts(page.all("table", id="means-1")[0]) == [list(headings(found)), *means]
    (each,) = page.all("table", id="each-1")
    assert texts(each)[:2] == [
        ["model", "dataset", "board", "probe", "selected", "Δ", "95 % of Δ", "p", "Δ lora-1"],
        ["m", "beans", "a", "50.0", "52.0", "+2.0", "−1.0 … +4.0", "0.5", "−1.0"],
    ]
    assert [link.attributes["href"] for link in page.all("a")] == ["#content", "index.html", "boards/a.html"]
    assert page.all("section", aria_labelledby="left-out") == []
    assert page.all("section", aria_labelledby="flags") == []


def test_the_page_is_well_made_with_two_settings_flags_and_things_left_out() -> None:
    tables = boards.three_transfers() | {
        "attacked": boards.transfer("beans", 5, 1.0, **boards.ATTACKED, flags="replay"),
        "mse": boards.transfer("dsprites", 50, 2.0, metric="mse"),
    }
    text = across_datasets_page.page(summed(tables))
    page = boards.parsed(text)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)), "every id is there once"
    assert {name for one in page.all("section") for name in [one.attributes["aria-labelledby"]]} <= set(ids)
    assert [len(page.all(tag)) for tag in ("header", "main", "footer", "h1", "table")] == [1, 1, 1, 1, 4]
    assert all(table.all("caption") and table.all("th", scope="col") for table in page.all("table"))
    assert all(len({len(row) for row in texts(table)}) == 1 for table in page.all("table"))
    assert [one.text for one in page.all("dt")] == ["replay"]
    assert page.all("li")[0].text == summed(tables).left_out[0]
    assert not re.search(r'(?:src|href)="(?!#|data:)', text), "nothing is loaded"
    assert across_datasets_page.page(summed(tables)) == text


def test_no_text_of_a_board_becomes_markup() -> None:
    nasty = boards.SCRIPT
    tables = {
        nasty: boards.transfer(nasty, 50, 2.0, {nasty: 1.0}, model=nasty, flags=nasty, attack=nasty),
        "gone": boards.table(boards.failed(nasty, nasty) | boards.CLEAN),
    }
    text = across_datasets_page.page(summed(tables), pages={nasty: nasty})
    page = boards.parsed(text)
    assert text.count("<script") == 1
    assert [row[0] for row in texts(page.all("table", id="means-1")[0])][1:] == [nasty, nasty]


def test_a_page_of_nothing_says_so() -> None:
    page = shown({"mse": boards.transfer("dsprites", 50, 2.0, metric="mse")})
    assert "None of the boards could be summed up." in page.text
    assert page.all("table") == []


# --- the commands ---


@pytest.fixture
def written(here: Path) -> list[str]:
    """Three boards in the folder, as the command line names them."""
    for name, table in boards.three_transfers().items():
        boards.write(table, here / f"leaderboards/{name}.csv")
    return [f"leaderboards/{name}.csv" for name in boards.three_transfers()]


def test_show_sums_several_boards_up(command: Command, written: list[str]) -> None:
    ended = command("show", *written)
    assert ended.code == 0
    rows = [re.split(r"\s{2,}", line.strip()) for line in ended.out.splitlines()]
    found = only(summed(boards.three_transfers()))
    assert list(headings(found)) in rows
    for row in found.methods:
        assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in cells(row)] in [
            [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in cells] for cells in rows
        ]
    assert ended.out.startswith("clean · against the linear probe")
    assert "left out" not in ended.out


def test_outcome_files_that_a_shell_pattern_finds_are_passed_over(
    command: Command, here: Path, written: list[str]
) -> None:
    beside = Path(written[0]).with_name("other.outcomes.csv")
    (here / beside).write_text("model,method,beta,c,stage,outcomes\n")
    assert command("show", *written, str(beside)).out == command("show", *written).out
    assert command("report", str(beside), *written).code == 0
    assert command("show", str(beside)).code == 2


def test_one_board_is_shown_as_ever(command: Command, written: list[str]) -> None:
    ended = command("show", written[0])
    assert ended.code == 0
    assert written[0] in ended.out
    assert "over sets" not in ended.out


def test_show_names_what_is_left_out_and_without_anything_else_could_not_be_done(
    command: Command, here: Path, written: list[str]
) -> None:
    for name in ("x", "y"):
        boards.write(boards.transfer(name, 50, 2.0, metric="mse"), here / f"{name}.csv")
    ended = command("show", "x.csv", *written)
    assert ended.code == 0
    assert "left out: x: x is measured in mse" in ended.out
    assert command("show", "x.csv", "y.csv").code == 2


def test_show_refuses_a_dataset_twice(command: Command, here: Path, written: list[str]) -> None:
    boards.write(boards.three_transfers()["a"], here / "else/a.csv")
    ended = command("show", *written, "else/a.csv")
    assert ended.code == 2
    assert "error: else/a.csv and leaderboards/a.csv: " in ended.err
    assert "leave one of them out" in ended.err
    ended = command("show", written[0], written[0])
    assert ended.code == 2
    assert ended.err.startswith(f"error: {written[0]}: ")
    assert "2 times" in ended.err


def test_report_writes_one_page_of_several_boards(command: Command, here: Path, written: list[str]) -> None:
    ended = command("report", *written)
    assert (ended.code, ended.out) == (0, "written: leaderboards/several.html\n")
    assert command("report", *written, "-o", "else/transfer.html").code == 0
    page = (here / "leaderboards/several.html").read_text(encoding="utf-8")
    assert (here / "else/transfer.html").read_text(encoding="utf-8") == page
    assert page == across_datasets_page.page(summed(boards.three_transfers()))
    assert command("report", written[0]).out == "written: leaderboards/a.html\n"


# --- the site ---


def built(tables: dict[str, pd.DataFrame], folder: Path) -> tuple[boards.Element, Path]:
    """The index of a site of these boards, and where across_datasets.html is, or would be."""
    for name, table in tables.items():
        boards.write(table, folder / f"boards/{name}.csv")
    site.build(boards.all_stored(folder / "boards"), folder / "site")
    index = boards.parsed((folder / "site/index.html").read_text(encoding="utf-8"))
    return index, folder / "site" / site.SEVERAL


def test_the_site_links_the_page_and_the_page_the_boards(tmp_path: Path) -> None:
    alone = boards.transfer("cub", 5, 1.0, **boards.ATTACKED)
    index, path = built(boards.three_transfers() | {"attacked": alone, "hard": boards.board("ResNet-18")}, tmp_path)
    (section,) = index.all("section", aria_labelledby="several")
    assert [link.attributes["href"] for link in section.all("a")] == ["several.html"]
    page = boards.parsed(path.read_text(encoding="utf-8"))
    assert [one.text for one in page.all("h2")] == ["clean · against the linear probe", "Two ways to sum up"]
    links = [str(link.attributes["href"]) for link in page.all("a")][1:]
    assert links == ["index.html", "boards/a.html", "boards/b.html", "boards/c.html"]
    assert all((tmp_path / "site" / link).is_file() for link in links)


def test_one_clean_board_is_not_several(tmp_path: Path) -> None:
    tables = {
        "a": boards.three_transfers()["a"],
        "attacked": boards.transfer("beans", 5, 1.0, **boards.ATTACKED),
        "hard": boards.hard(),
    }
    index, path = built(tables, tmp_path)
    assert index.all("section", aria_labelledby="several") == []
    assert not path.exists()


def test_where_the_boards_cannot_be_summed_up_the_index_says_why_and_the_site_is_made(tmp_path: Path) -> None:
    index, path = built({"a": boards.three_transfers()["a"], "again": boards.three_transfers()["a"]}, tmp_path)
    (section,) = index.all("section", aria_labelledby="several")
    assert "Not summed up: a and again: expected every board to be of another dataset" in section.text
    assert section.all("a") == []
    assert not path.exists()
