"""Commands that show leaderboards: show, plot, report, site, paper, demo, export and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.exit_codes import GOOD, UNDONE, guarded
from harness.errors import LeaderboardError, SpecError
from harness.util.files import write_whole

if TYPE_CHECKING:
    from harness.leaderboard.across_datasets import AcrossDatasets
    from harness.leaderboard.board_files import StoredBoard


@guarded
def show(
    boards: Annotated[list[Path], typer.Argument(help="A leaderboard CSV, or several, each of another dataset.")],
) -> int:
    """Show a leaderboard, and explain its flags; or sum up several, each of another dataset."""
    from harness.cli.terminal import print_across_datasets, print_board, print_flags

    boards = _without_outcome_files(boards)
    if len(boards) > 1:
        found = _summed_up(boards)
        print_across_datasets(found)
        return GOOD if found.settings else UNDONE
    (board,) = boards
    rows = _read(board).rows
    print_board(rows, str(board))
    print_flags(rows)
    return GOOD


def _read(board: Path) -> StoredBoard:
    """Read a board, and say where it could not be held against what was computed."""
    from harness.leaderboard import board_files

    return _told(board_files.read(board))


def _told(board: StoredBoard) -> StoredBoard:
    if board.doubt:
        typer.echo(f"warning: {board.doubt}", err=True)
    return board


def _without_outcome_files(paths: list[Path]) -> list[Path]:
    """Return the boards among the files that a shell pattern has found."""
    from harness.leaderboard import outcomes

    return [path for path in paths if not outcomes.is_outcome_file(path)] or paths


def _summed_up(boards: list[Path]) -> AcrossDatasets:
    """Sum up several boards, named by their paths where two have the same name."""
    from harness.leaderboard import across_datasets

    if twice := [board for board in boards if boards.count(board) > 1]:
        raise LeaderboardError(f"{twice[0]}: expected each board once, found it {boards.count(twice[0])} times")
    names = [board.stem for board in boards]
    apart = len(set(names)) == len(names)
    return across_datasets.sum_up({board.stem if apart else str(board): _read(board).rows for board in boards})


@guarded
def plot(
    board: Annotated[Path, typer.Argument(help="A leaderboard CSV.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The directory. (default: the board's)")] = None,
) -> int:
    """Draw accuracy against β, one panel for each model, as SVG and PNG."""
    from harness.report import plot

    for path in plot.write(_read(board).rows, out or board.parent, board.stem):
        typer.echo(f"written: {path}")
    return GOOD


@guarded
def report(
    boards: Annotated[
        list[Path],
        typer.Argument(help="A leaderboard CSV, its outcome file beside it; or several to sum up."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page. (default: beside the board; for several, several.html)"),
    ] = None,
) -> int:
    """Write a leaderboard, or several summed up, as one HTML page for people; it needs no network."""
    from harness.report import across_datasets_page
    from harness.report import page as board_page

    boards = _without_outcome_files(boards)
    if len(boards) > 1:
        out, page = out or boards[0].with_name("several.html"), across_datasets_page.page(_summed_up(boards))
    else:
        out, page = out or boards[0].with_suffix(".html"), board_page.report(_read(boards[0]))
    write_whole(out, page)
    typer.echo(f"written: {out}")
    return GOOD


@guarded
def site(
    directory: Annotated[Path, typer.Argument(help="A directory of leaderboard CSVs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to publish.")] = Path("site"),
) -> int:
    """Write a static site of all leaderboards in a directory: an index, a page for each, and the files."""
    from harness.report import site

    typer.echo(f"written: {site.build([*map(_told, site.read(directory))], out)[0]}")
    return GOOD


@guarded
def paper(
    directory: Annotated[Path, typer.Argument(help="A directory of leaderboard CSVs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("paper.html"),
) -> int:
    """Write the paper's robustness table as one HTML page: as published, under protocol: paper, and in pixel space."""
    from harness.report import paper_table, site

    rows = {board.path.stem: _told(board).rows for board in site.read(directory)}
    write_whole(out, paper_table.page(paper_table.groups(rows)))
    typer.echo(f"written: {out}")
    return GOOD


@guarded
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory.")] = Path(),
    seed: Annotated[int, typer.Option(help="Seed of the networks and their data.")] = 0,
) -> int:
    """Draw what β does to two small networks, as SVG and PNG: a decision boundary and a fitted curve."""
    from harness.report import demo_figure

    for path in demo_figure.write(out, seed):
        typer.echo(f"written: {path}")
    return GOOD


@guarded
def export(
    board: Annotated[Path, typer.Argument(help="A leaderboard CSV.")],
    json_: Annotated[bool, typer.Option("--json", help="As a list of rows.")] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="As typed columns; needs the extra parquet.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="As a table of the headlines, for booktabs.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file. (default: beside the board)")] = None,
) -> int:
    """Write a leaderboard for other programs: --json, --parquet or --latex."""
    from harness.report.export import FORMS

    asked = [form for form, wanted in (("json", json_), ("parquet", parquet), ("latex", latex)) if wanted]
    if len(asked) != 1:
        raise SpecError(f"expected one of --json, --parquet and --latex, found {len(asked)}")
    suffix, to = FORMS[asked[0]]
    out = out or board.with_suffix(suffix)
    write_whole(out, to(_read(board).table))
    typer.echo(f"written: {out}")
    return GOOD


@guarded
def compare(
    board: Annotated[Path, typer.Argument(help="A leaderboard CSV.")],
    other: Annotated[Path | None, typer.Argument(help="Another one, compared row by row.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table as CSV.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the table as JSON.")] = None,
) -> int:
    """Compare each model's selected β with its baseline; or two leaderboards, row by row."""
    from harness.cli.terminal import print_comparison, print_within
    from harness.leaderboard import compare

    first = _read(board)
    if other is None:
        table = compare.within(first.table)
        print_within(first.rows, str(board))
    else:
        second = _read(other)
        found = compare.between(first.table, second.table, first.outcomes, second.outcomes)
        table = found.table()
        print_comparison(found, f"{other} less {board}")
    if csv:
        write_whole(csv, table.to_csv(index=False, lineterminator="\n"))
    if json_:
        write_whole(json_, table.to_json(orient="records", force_ascii=False, indent=2) + "\n")
    return GOOD
