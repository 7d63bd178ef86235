"""A folder of leaderboards as a static site: an index, a page for each board, and the files themselves.

Every address is relative, so the site works from any folder of any server, and from a disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from harness.checks import zoo_coverage
from harness.errors import LeaderboardError
from harness.leaderboard import across_datasets, csv_file, outcomes
from harness.report import curves, paper_table
from harness.report.html import render
from harness.report.page import facts, report
from harness.report.verdict import SHORT, ModelVerdict, model_verdict
from harness.util.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

BOARDS = "boards"
"""The folder of the boards' pages, and of their files."""
COVERAGE = "coverage.csv"
"""The one table among the boards that is none."""
PAPER = "paper.html"
"""The paper's table, where a board belongs to it."""
SEVERAL = "several.html"
"""Several data sets summed up, where there are some."""


class Listed(NamedTuple):
    """A board, as the index names it.

    Args:
        page: address of its report.
        files: addresses of its files, by what they are.
        counts: how many models have each verdict, in a word.
        best: the largest gain at a β that was chosen on other images, in points.
        flagged: rows with a flag.
    """

    name: str
    page: str
    files: dict[str, str]
    dataset: str
    threat: str
    n: str
    verdicts: tuple[ModelVerdict, ...]
    counts: dict[str, int]
    best: float | None
    flagged: int


def build(folder: Path, out: Path) -> list[Path]:
    """Write the site of all boards in ``folder``; what is written, the index first.

    Raises:
        LeaderboardError: there is no board, a CSV is none, or the site cannot be written.
    """
    boards = found(folder)
    tables = read(boards)
    published = paper_table.groups(tables)
    there = PAPER if paper_table.belongs(published) else ""
    listed = [_listed(board, tables[board.stem]) for board in boards]
    means, why_not = summed_up(tables)
    summed = SEVERAL if means else ""
    pages: dict[Path, str | bytes] = {
        out / "index.html": index(listed, folder / COVERAGE, there, summed, why_not),
    }
    up, own = {"all boards": "index.html"}, {one.name: one.page for one in listed}
    if there:
        pages[out / PAPER] = paper_table.page(published, up, own)
    if means:
        pages[out / SEVERAL] = across_datasets.page(means, up, own)
    for board in boards:
        bits = outcomes.path_of(board)
        links = {"all boards": "../index.html"} | _files(board)
        pages[out / BOARDS / f"{board.stem}.html"] = report(board, links)
        for path in (board, *([bits] if bits.exists() else [])):
            pages[out / BOARDS / path.name] = path.read_bytes()
    if (folder / COVERAGE).exists():
        pages[out / COVERAGE] = (folder / COVERAGE).read_bytes()
    for path, text in pages.items():
        write_whole(path, text)
    return list(pages)


def boards_of(folder: Path) -> list[Path]:
    """The boards of a folder, by name: every CSV but the outcome files and the table of coverage."""
    return sorted(path for path in folder.glob("*.csv") if not outcomes.is_one(path) and path.name != COVERAGE)


def found(folder: Path) -> list[Path]:
    """The boards of a folder, by name.

    Raises:
        LeaderboardError: there is none.
    """
    boards = boards_of(folder)
    if not boards:
        raise LeaderboardError(
            f"{folder}: expected leaderboards (*.csv), found none; name the folder that `ct-harness run` writes to"
        )
    return boards


def read(boards: Iterable[Path]) -> dict[str, pd.DataFrame]:
    """The boards by their names.

    Raises:
        LeaderboardError: a CSV is none.
    """
    return {board.stem: _read(board) for board in boards}


def summed_up(tables: Mapping[str, pd.DataFrame]) -> tuple[across_datasets.AcrossDatasets | None, str]:
    """The boards of transfers, where two or more are of one clean question; or why they cannot be summed up."""
    asked = {
        name: table
        for name, table in tables.items()
        if (table["threat"] == "clean").any() or (table["method"] == csv_file.LINEAR_PROBE).any()
    }
    try:
        found = across_datasets.sum_up(asked)
    except LeaderboardError as error:  # the other pages are not touched by this
        return None, str(error)
    groups = tuple(group for group in found.groups if len(group.boards) > 1)
    clean = any(group.question.threat == "clean" for group in groups)
    return (found._replace(groups=groups) if clean else None), ""


def index(boards: Iterable[Listed], table: Path, published: str, summed: str = "", why_not: str = "") -> str:
    """The page that lists the boards, and sums up the table of coverage where there is one.

    Args:
        boards: as it names them.
        table: of coverage.
        published: address of the paper's table; empty where there is none.
        summed: address of several data sets summed up; likewise.
        why_not: what stood in the way of that.
    """
    audits = zoo_coverage.read(table)
    return render(
        "index.html.j2",
        boards=list(boards),
        coverage=[("board", "entries", *zoo_coverage.SUMMED_UP), *zoo_coverage.summed_up(audits)] if audits else [],
        table=COVERAGE,
        paper=published,
        several=summed,
        why_not=why_not,
    )


def _listed(board: Path, table: pd.DataFrame) -> Listed:
    rows = table.to_dict("records")
    known = facts(rows)
    told = tuple(model_verdict(model, part) for model, part in curves.models(table).items())
    return Listed(
        board.stem,
        f"{BOARDS}/{quote(board.stem)}.html",
        {name: f"{BOARDS}/{address}" for name, address in _files(board).items()},
        known.get("images", ""),
        known.get("threat", "") + (f", ε = {known['ε']}" if "ε" in known else ""),
        known.get("how many", ""),
        told,
        dict(Counter(SHORT[one.verdict] for one in told)),
        max((one.gain for one in told if one.gain is not None and one.verdict != "untrusted"), default=None),
        sum(bool(row["flags"]) for row in rows),
    )


def _read(board: Path) -> pd.DataFrame:
    try:
        return csv_file.read(board)
    except LeaderboardError as error:
        raise LeaderboardError(f"{error}; take the file out of {board.parent}, or run its benchmark again") from error


def _files(board: Path) -> dict[str, str]:
    """Names and addresses of the files that lie beside a board's page."""
    bits = outcomes.path_of(board)
    files = {"CSV": quote(board.name)}
    return files | ({"outcomes": quote(bits.name)} if bits.exists() else {})
