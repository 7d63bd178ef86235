"""Commands that compute: ``run``, ``check`` and ``doctor``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.exit_codes import GOOD, NO, UNDONE, guarded
from harness.errors import DataError, LeaderboardError, SpecError
from harness.util.files import write_whole

if TYPE_CHECKING:
    from harness.config.benchmark import Benchmark
    from harness.leaderboard.regression import Board


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
    from harness.cli.progress import ProgressBar
    from harness.leaderboard import csv_file, outcomes
    from harness.leaderboard.regression import Board

    try:
        with ProgressBar() as ticker:
            entries = pipeline.entries(loaded, runs=runs, offline=offline, listener=ticker)
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
