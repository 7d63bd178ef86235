"""Commands that show leaderboards: show, compare, plot, report, site, paper, export and demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.exit_codes import GOOD, UNDONE, guarded
from harness.errors import LeaderboardError, SpecError
from harness.util.files import write_whole

if TYPE_CHECKING:
    from harness.leaderboard.across_datasets import AcrossDatasets


@guarded
def show(
    boards: Annotated[list[Path], typer.Argument(help="A leaderboard CSV, or several of other data sets.")],
) -> int:
    """Show a leaderboard, and explain its flags; or sum several up, each of another data set."""
    from harness.cli.terminal import print_across_datasets, print_board, print_flags
    from harness.leaderboard import csv_file

    boards = _without_outcome_files(boards)
    if len(boards) > 1:
        found = _summed_up(boards)
        print_across_datasets(found)
        return GOOD if found.groups else UNDONE
    (board,) = boards
    table = csv_file.read(board)
    print_board(table, str(board))
    print_flags(table)
    return GOOD


def _without_outcome_files(paths: list[Path]) -> list[Path]:
    """The boards among files that a shell pattern has found."""
    from harness.leaderboard import outcomes

    return [path for path in paths if not outcomes.is_one(path)] or paths


def _summed_up(boards: list[Path]) -> AcrossDatasets:
    """Several boards by their names, or their paths where two have the same name."""
    from harness.leaderboard import across_datasets, csv_file

    if twice := [board for board in boards if boards.count(board) > 1]:
        raise LeaderboardError(f"{twice[0]}: expected each board once, found it {boards.count(twice[0])} times")
    names = [board.stem for board in boards]
    apart = len(set(names)) == len(names)
    return across_datasets.sum_up({board.stem if apart else str(board): csv_file.read(board) for board in boards})


@guarded
def plot(
    board: Annotated[Path, typer.Argument(help="A leaderboard CSV.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder. [default: the board's]")] = None,
) -> int:
    """Draw accuracy against β, one panel a model, as SVG and PNG."""
    from harness.leaderboard import csv_file
    from harness.report import plot

    for path in plot.write(csv_file.read(board), out or board.parent, board.stem):
        typer.echo(f"written: {path}")
    return GOOD


@guarded
def report(
    boards: Annotated[
        list[Path],
        typer.Argument(help="A leaderboard CSV, its outcome file is looked for beside it; or several to sum up."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page. [default: beside the board; of several, across_datasets.html]"),
    ] = None,
) -> int:
    """Write a leaderboard, or several summed up, as one HTML page for people; it needs no network."""
    from harness.leaderboard import across_datasets
    from harness.report import page as reports

    boards = _without_outcome_files(boards)
    if len(boards) > 1:
        out, page = out or boards[0].with_name("several.html"), across_datasets.page(_summed_up(boards))
    else:
        out, page = out or boards[0].with_suffix(".html"), reports.report(boards[0])
    write_whole(out, page)
    typer.echo(f"written: {out}")
    return GOOD


@guarded
def site(
    folder: Annotated[Path, typer.Argument(help="A folder of leaderboard CSVs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to publish.")] = Path("site"),
) -> int:
    """Write a static site of all leaderboards in a folder: an index, a page for each, and the files."""
    from harness.report import site as sites

    typer.echo(f"written: {sites.build(folder, out)[0]}")
    return GOOD


@guarded
def paper(
    folder: Annotated[Path, typer.Argument(help="A folder of leaderboard CSVs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("paper.html"),
) -> int:
    """Write the paper's robustness table as one HTML page: as published, under protocol: paper, and in pixel space."""
    from harness.report import paper_table as papers
    from harness.report import site as sites

    write_whole(out, papers.page(papers.groups(sites.read(sites.found(folder)))))
    typer.echo(f"written: {out}")
    return GOOD


@guarded
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder.")] = Path(),
    seed: Annotated[int, typer.Option(help="Of the networks and their data.")] = 0,
) -> int:
    """Draw what β does to two small networks, as SVG and PNG: a decision boundary and a fitted curve."""
    from harness.report import demo_figure

    for path in demo_figure.write(out, seed):
        typer.echo(f"written: {path}")
    return GOOD


@guarded
def export(
    board: Annotated[Path, typer.Argument(help="A leaderboard CSV.")],
    json_: Annotated[bool, typer.Option("--json", help="A list of rows.")] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="With types; needs ct-harness[parquet].")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="A table of the headlines, for booktabs.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file. [default: beside the board]")] = None,
) -> int:
    """Write a leaderboard for other programs: --json, --parquet or --latex."""
    from harness.leaderboard import csv_file
    from harness.report.export import FORMS

    asked = [form for form, wanted in (("json", json_), ("parquet", parquet), ("latex", latex)) if wanted]
    if len(asked) != 1:
        raise SpecError(f"expected one of --json, --parquet and --latex, found {len(asked)}")
    suffix, to = FORMS[asked[0]]
    out = out or board.with_suffix(suffix)
    write_whole(out, to(csv_file.read(board)))
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
    from harness.leaderboard import compare as comparing
    from harness.leaderboard import csv_file, outcomes

    first = csv_file.read(board)
    if other is None:
        rows = comparing.within(first)
        print_within(rows, str(board))
    else:
        found = comparing.between(first, csv_file.read(other), outcomes.read(board), outcomes.read(other))
        rows = found.rows
        print_comparison(found, f"{other} less {board}")
    if csv:
        write_whole(csv, rows.to_csv(index=False, lineterminator="\n"))
    if json_:
        write_whole(json_, rows.to_json(orient="records", force_ascii=False, indent=2) + "\n")
    return GOOD
