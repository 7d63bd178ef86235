"""The command line: the only place that prints and the only one that knows exit codes.

0: good. 1: the answer is no (a model failed, a board regressed). 2: it could not be done (bad input, nothing scored).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import __version__
from harness.errors import DataError, HarnessError, LeaderboardError, SpecError
from harness.util.files import write_whole

if TYPE_CHECKING:
    from harness.config.benchmark import Benchmark
    from harness.leaderboard.across_datasets import Several
    from harness.leaderboard.regression import Board

GOOD, NO, UNDONE = 0, 1, 2
COVERAGE = Path("leaderboards/coverage.csv")

app = typer.Typer(
    name="ct-harness",
    help="Does Curvature Tuning make a pretrained classifier more robust? From a benchmark YAML to a β leaderboard.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


SHARED = {"debug": False}
"""The options that stand before the command."""


class Group(StrEnum):
    """What ``list`` can list."""

    models = "models"
    datasets = "datasets"
    threats = "threats"
    executors = "executors"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ct-harness {__version__}")
        raise typer.Exit(GOOD)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Keep the options that all commands share."""
    SHARED["debug"] = debug


def guarded(command: Callable[..., int]) -> Callable[..., None]:
    """A command that ends with the exit code it returns, or 2 and one clear message where it could not be done."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs)
        except HarnessError as error:
            if SHARED["debug"]:
                raise
            typer.secho(f"error: {error}", err=True, fg="red")
            code = UNDONE
        except KeyboardInterrupt:
            typer.echo("interrupted; what is computed is kept: run the same command to go on", err=True)
            code = UNDONE
        raise typer.Exit(code)

    return run


@app.command()
@guarded
def run(
    benchmark: Annotated[Path, typer.Argument(help="The benchmark YAML.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key, such as dataset.n=100.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(metavar="KIND", help="Compute the cells there instead: local, ray, slurm.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster, such as ray://host:10001.")] = None,
    out: Annotated[Path | None, typer.Option(help="The CSV. [default: leaderboards/<name>.csv]")] = None,
    runs: Annotated[Path, typer.Option(help="Where the ledgers lie.")] = Path("runs"),
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> int:
    """Run a benchmark and write its leaderboard. What an earlier run has computed is not computed again."""
    from harness.cli.terminal import print_board
    from harness.config.benchmark import load_benchmark

    loaded = load_benchmark(benchmark, [*_elsewhere(executor, address), *(overrides or ())])
    out = out or Path("leaderboards") / f"{loaded.name}.csv"
    _writable(out)
    board = _fresh(benchmark, loaded, runs, offline)
    _write(board, out)
    print_board(board.table, str(out))
    return _verdict(board.table)


def _elsewhere(kind: str | None, address: str | None) -> list[str]:
    """``--executor`` and ``--address`` as an override; it comes first, so that --set can add to it."""
    if address is not None and kind != "ray":
        raise SpecError(f"--address {address}: goes with --executor ray, found {kind or 'no --executor'}; add it")
    fields = {"kind": kind, "address": address}
    given = {key: value for key, value in fields.items() if value is not None}
    return [f"executor={json.dumps(given)}"] if given else []


def _fresh(path: Path, loaded: Benchmark, runs: Path, offline: bool) -> Board:
    """Run the benchmark that was read from ``path`` under a progress display."""
    from harness import pipeline
    from harness.cli.terminal import Ticker
    from harness.leaderboard import csv_file, outcomes
    from harness.leaderboard.regression import Board

    try:
        with Ticker() as ticker:
            entries = pipeline.entries(loaded, runs=runs, offline=offline, observer=ticker)
    except (DataError, SpecError) as error:  # a key of the file that only the data could show to be wrong
        raise type(error)(f"{path}: {error}") from error
    return Board(csv_file.board(entries), outcomes.table(entries))


def _write(board: Board, out: Path) -> None:
    from harness.leaderboard import csv_file, outcomes

    outcomes.write(board.outcomes, out)
    csv_file.write(board.table, out)


def _writable(out: Path) -> None:
    """Find out before hours of work, not after them."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        reachable = os.access(out if out.exists() else out.parent, os.W_OK)
    except OSError as error:
        raise LeaderboardError(f"{out}: cannot be written: {error}; choose another place with --out") from error
    if not reachable or out.is_dir():
        raise LeaderboardError(f"{out}: cannot be written; choose another place with --out")


def _verdict(table: Any) -> int:
    from harness.leaderboard.csv_file import FAILED

    failed = table["status"].str.startswith(FAILED)
    return UNDONE if failed.all() else NO if failed.any() else GOOD


@app.command()
@guarded
def show(
    boards: Annotated[list[Path], typer.Argument(help="A leaderboard CSV, or several of other data sets.")],
) -> int:
    """Show a leaderboard, and explain its flags; or sum several up, each of another data set."""
    from harness.cli.terminal import print_board, print_flags, print_several
    from harness.leaderboard import csv_file

    boards = _without_outcome_files(boards)
    if len(boards) > 1:
        found = _summed_up(boards)
        print_several(found)
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


def _summed_up(boards: list[Path]) -> Several:
    """Several boards by their names, or their paths where two have the same name."""
    from harness.leaderboard import across_datasets, csv_file

    if twice := [board for board in boards if boards.count(board) > 1]:
        raise LeaderboardError(f"{twice[0]}: expected each board once, found it {boards.count(twice[0])} times")
    names = [board.stem for board in boards]
    apart = len(set(names)) == len(names)
    return across_datasets.sum_up({board.stem if apart else str(board): csv_file.read(board) for board in boards})


@app.command()
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


@app.command()
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


@app.command()
@guarded
def site(
    folder: Annotated[Path, typer.Argument(help="A folder of leaderboard CSVs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to publish.")] = Path("site"),
) -> int:
    """Write a static site of all leaderboards in a folder: an index, a page for each, and the files."""
    from harness.report import site as sites

    typer.echo(f"written: {sites.build(folder, out)[0]}")
    return GOOD


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
@guarded
def check(
    benchmark: Annotated[Path, typer.Argument(help="The benchmark YAML.")],
    against: Annotated[Path, typer.Option(help="The committed leaderboard CSV, with its outcome file beside it.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key.")] = None,
    max_drop: Annotated[float | None, typer.Option(min=0, help="Points that no accuracy may fall by.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write a Markdown summary.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Accept the fresh board on purpose.")] = False,
    runs: Annotated[
        Path | None, typer.Option(help="Where the ledgers lie. [default: runs/check-<hash of the code>]")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> int:
    """Run a benchmark and hold it against a committed leaderboard: 0 held, 1 regressed, 2 could not be compared."""
    from harness.config.benchmark import load_benchmark
    from harness.engine.provenance import code_sha256
    from harness.leaderboard import csv_file, outcomes, regression
    from harness.report import ci_summary as summaries

    loaded = load_benchmark(benchmark, overrides or ())
    committed = None if update and not against.exists() else csv_file.read(against)
    bits = outcomes.read(against)
    if bits is None and not update:
        raise LeaderboardError(f"{outcomes.path_of(against)}: missing; commit it, or accept a new board (--update)")
    # what another state of the code has computed says nothing about this one
    fresh = _fresh(benchmark, loaded, runs or Path("runs") / f"check-{code_sha256()[:12]}", offline)
    if update:
        if _verdict(fresh.table) != GOOD:
            raise LeaderboardError(f"{against}: not updated: a model failed; mend it, or take it out of the benchmark")
        _write(fresh, against)
        typer.echo(f"accepted: {against}")
        return _verdict(fresh.table)
    assert committed is not None
    assert bits is not None
    rows = regression.check(fresh, regression.Board(committed, bits), max_drop)
    if summary:
        write_whole(summary, summaries.markdown(loaded.name, rows))
    if junit:
        write_whole(junit, summaries.junit(loaded.name, rows))
    typer.echo(summaries.headline(loaded.name, rows))
    for row in rows:
        if row.verdict != "held":
            typer.echo(f"  {row.verdict}: {row.name}: {row.why}")
    return NO if regression.failed(rows) else GOOD


@app.command()
@guarded
def doctor(
    benchmark: Annotated[Path, typer.Argument(help="The benchmark YAML.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key.")] = None,
    out: Annotated[Path | None, typer.Option(help="The CSV. [default: leaderboards/<name>.csv]")] = None,
    runs: Annotated[Path, typer.Option(help="Where the ledgers lie.")] = Path("runs"),
    offline: Annotated[
        bool, typer.Option("--offline", help="As of run; nothing is downloaded without it either.")
    ] = True,
) -> int:
    """Look, before the hours are spent, whether a benchmark will run, and what it will take: 0 ready, 2 not."""
    from harness.checks.doctor import doctor as look
    from harness.cli.terminal import print_findings
    from harness.config.benchmark import load_benchmark

    loaded = load_benchmark(benchmark, overrides or ())
    out = out or Path("leaderboards") / f"{loaded.name}.csv"
    return GOOD if print_findings(look(loaded, runs=runs, out=out)) else UNDONE


@app.command()
@guarded
def coverage(
    board: Annotated[str | None, typer.Option(help="Only this board of RobustBench, such as cifar10/Linf.")] = None,
    model: Annotated[str | None, typer.Option(help="Only entries of this name.")] = None,
    csv: Annotated[Path, typer.Option(help="The table; what it has is not audited again.")] = COVERAGE,
) -> int:
    """Tell what Curvature Tuning reaches of RobustBench's architectures: random weights, nothing is downloaded."""
    from harness.checks import zoo_coverage as coverages
    from harness.cli.terminal import Counting, print_coverage
    from harness.models.robustbench_zoo import zoo
    from harness.util.text import did_you_mean

    entries = zoo()
    for option, wanted, names in (
        ("--board", board, sorted({entry.board for entry in entries})),
        ("--model", model, sorted({entry.name for entry in entries})),
    ):
        if wanted is not None and wanted not in names:
            raise SpecError(f"{option}: RobustBench has no {wanted!r}{did_you_mean(wanted, names)}")
    chosen = [entry for entry in entries if board in (None, entry.board) and model in (None, entry.name)]
    if not chosen:
        raise SpecError(f"--model: {model!r} is not on the board {board}; leave --board out")
    with Counting(len(coverages.missing(chosen, csv)), "entries") as counting:
        rows = coverages.survey(chosen, csv, lambda row: counting.advanced(f"{row.dataset}/{row.threat} {row.model}"))
    print_coverage(rows, str(csv))
    return NO if any(row.builds != "yes" for row in rows) else GOOD


@app.command("list")
@guarded
def list_(group: Annotated[Group | None, typer.Argument(help="Only these.")] = None) -> int:
    """List what can be named in a YAML, built-in and third-party; with a group also the names of its models."""
    from harness.api import registry
    from harness.cli.terminal import print_names, print_parts

    for name in [group.value] if group else [entry.value for entry in Group]:
        print_parts(name, registry.described(name))
    if group:
        for kind in registry.registered(group.value):
            print_names(registry.part(group.value, kind).names())
    return GOOD


@app.command()
@guarded
def schema() -> int:
    """Print the JSON Schema of the benchmark YAML, for editors."""
    from harness.config.schema import schema as make

    typer.echo(json.dumps(make(), indent=2, ensure_ascii=False))
    return GOOD


def main() -> None:
    """The entry point of ``ct-harness``."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without β still works
    app()
