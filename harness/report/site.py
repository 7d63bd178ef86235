"""A directory of leaderboards as a static site: an index, a page for each board, and the files themselves.

Every address is relative, so the site works from any directory of any server, and from a disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from harness.checks import zoo_coverage
from harness.errors import LeaderboardError
from harness.leaderboard import across_datasets, board_files, outcomes
from harness.leaderboard.board_files import StoredBoard, files_of
from harness.leaderboard.row import LINEAR_PROBE, LeaderboardRow, by_model
from harness.report import across_datasets_page, paper_table
from harness.report.html import render
from harness.report.page import facts, report
from harness.report.verdict import SHORT, ModelVerdict, model_verdict
from harness.report.zoo_summary import SUMMED_UP, summed_up
from harness.util.files import write_whole

BOARDS = "boards"
"""Directory of the boards' pages, and of their files."""
COVERAGE = "coverage.csv"
"""The table of coverage, which lies among the boards."""
PAPER = "paper.html"
"""The paper's table, where a board belongs to it."""
SEVERAL = "several.html"
"""Several datasets summed up, where there are some."""


class ListedBoard(NamedTuple):
    """A board as the index lists it.

    Args:
        name: name of the board.
        page: address of its page.
        files: addresses of its files by their kind.
        dataset: label of its dataset.
        threat: threat and ε in words.
        n: number of images.
        verdicts: result of each model.
        counts: number of models by short verdict.
        best: largest gain at a β that was chosen on other images, in points; None where there is none.
        flagged: number of rows with a flag.
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


def build(boards: Sequence[StoredBoard], out: Path) -> list[Path]:
    """Write the site of all boards of a directory to ``out``, and return the files, the index first.

    Args:
        boards: at least one; see `read`.
        out: the directory to publish.

    Raises:
        FileError: the site cannot be written.
    """
    directory, rows = boards[0].path.parent, {board.path.stem: board.rows for board in boards}
    published = paper_table.groups(rows)
    paper = PAPER if paper_table.belongs(published) else ""
    listed = [_listed(board.path, board.rows) for board in boards]
    transfers, why_not = transfers_summed_up(rows)
    pages: dict[Path, str | bytes] = {
        out / "index.html": index(listed, directory / COVERAGE, paper, SEVERAL if transfers else "", why_not),
    }
    links, addresses = {"all boards": "index.html"}, {one.name: one.page for one in listed}
    if paper:
        pages[out / PAPER] = paper_table.page(published, links, addresses)
    if transfers:
        pages[out / SEVERAL] = across_datasets_page.page(transfers, links, addresses)
    for board in boards:
        there = {"all boards": "../index.html"} | _files(board.path)
        pages[out / BOARDS / f"{board.path.stem}.html"] = report(board, there)
        for file in files_of(board.path).values():
            pages[out / BOARDS / file.name] = file.read_bytes()
    if (directory / COVERAGE).exists():
        pages[out / COVERAGE] = (directory / COVERAGE).read_bytes()
    for file, content in pages.items():
        write_whole(file, content)
    return list(pages)


def boards_of(directory: Path) -> list[Path]:
    """Return the boards of a directory by name: every CSV but the outcome files and the table of coverage."""
    return sorted(
        path for path in directory.glob("*.csv") if not outcomes.is_outcome_file(path) and path.name != COVERAGE
    )


def read(directory: Path) -> list[StoredBoard]:
    """Read the boards of a directory in the order of their names, at least one.

    Raises:
        LeaderboardError: there is none, or a CSV is not one.
    """
    paths = boards_of(directory)
    if not paths:
        raise LeaderboardError(
            f"{directory}: expected leaderboards (*.csv), found none; name the directory that `ct-harness run` "
            "writes to"
        )
    return [_read(path) for path in paths]


def _read(path: Path) -> StoredBoard:
    try:
        return board_files.read(path)
    except LeaderboardError as error:
        raise LeaderboardError(f"{error}; take the file out of {path.parent}, or run its benchmark again") from error


def transfers_summed_up(
    boards: Mapping[str, Sequence[LeaderboardRow]],
) -> tuple[across_datasets.AcrossDatasets | None, str]:
    """Sum up the boards of transfers, where at least two without a threat share a setting; else say why not."""
    transfers = {
        name: rows
        for name, rows in boards.items()
        if any(not row.is_attacked or row.method == LINEAR_PROBE for row in rows)
    }
    try:
        found = across_datasets.sum_up(transfers)
    except LeaderboardError as error:  # the other pages are not touched by this
        return None, str(error)
    shared = tuple(summary for summary in found.settings if len(summary.boards) > 1)
    clean = any(summary.setting.threat == "clean" for summary in shared)
    return (found._replace(settings=shared) if clean else None), ""


def index(boards: Iterable[ListedBoard], coverage: Path, paper: str, several: str = "", why_not: str = "") -> str:
    """Return the page that lists the boards, and sums up the table of coverage where there is one.

    Args:
        boards: boards to list.
        coverage: path of the table of coverage, which need not exist.
        paper: address of the paper's table; empty where there is none.
        several: address of several datasets summed up; empty where there is none.
        why_not: why the datasets cannot be summed up; empty where they can.
    """
    audits = zoo_coverage.read(coverage)
    return render(
        "index.html.j2",
        boards=list(boards),
        coverage=[("board", "entries", *SUMMED_UP), *summed_up(audits)] if audits else [],
        table=COVERAGE,
        paper=paper,
        several=several,
        why_not=why_not,
    )


def _listed(path: Path, rows: Sequence[LeaderboardRow]) -> ListedBoard:
    found = facts(rows)
    verdicts = tuple(model_verdict(own) for own in by_model(rows).values())
    return ListedBoard(
        path.stem,
        f"{BOARDS}/{quote(path.stem)}.html",
        {name: f"{BOARDS}/{address}" for name, address in _files(path).items()},
        found.get("images", ""),
        found.get("threat", "") + (f", ε = {found['ε']}" if "ε" in found else ""),
        found.get("how many", ""),
        verdicts,
        dict(Counter(SHORT[one.verdict] for one in verdicts)),
        max((one.gain for one in verdicts if one.gain is not None and one.verdict != "untrusted"), default=None),
        sum(bool(row.flags) for row in rows),
    )


def _files(path: Path) -> dict[str, str]:
    """Return the addresses of the files beside a board's page by their kind."""
    return {name: quote(file.name) for name, file in files_of(path).items()}
