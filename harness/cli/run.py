"""Commands that compute: ``run``, ``check`` and ``doctor``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.exit_codes import GOOD, NO, UNDONE, guarded
from harness.cli.signals import ended
from harness.errors import DataError, FileError, LeaderboardError, SpecError
from harness.util.files import check_writable, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.config.benchmark import Benchmark
    from harness.leaderboard.regression import Board
    from harness.leaderboard.row import LeaderboardRow


@guarded
def run(
    benchmark: Annotated[Path, typer.Argument(help="The benchmark YAML.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key, such as dataset.n=100.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(metavar="KIND", help="Compute on another executor: local, ray, slurm.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Address of the Ray cluster, such as ray://host:10001.")] = None,
    out: Annotated[Path | None, typer.Option(help="The CSV. (default: leaderboards/<name>.csv)")] = None,
    runs: Annotated[Path, typer.Option(help="Ledger directory.")] = Path("runs"),
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop what is damaged in the ledger, and compute it again.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute everything again.")] = False,
) -> int:
    """Run a benchmark and write its leaderboard. Results of an earlier run are not computed again."""
    from harness.cli.terminal import print_board
    from harness.config.benchmark import load_benchmark
    from harness.leaderboard.row import rows_of

    loaded = load_benchmark(benchmark, [*_executor_override(executor, address), *(overrides or ())])
    out = out or Path("leaderboards") / f"{loaded.name}.csv"
    _writable(out)
    if fresh:
        _set_aside(loaded, runs)
    if repair:
        _repair(runs / loaded.name)
    board = _fresh(benchmark, loaded, runs, offline)
    rows = rows_of(board.table)
    if _exit_code(rows) == UNDONE and out.exists():
        typer.echo(f"{out} is left as it is: no model was scored", err=True)
    else:
        out = _kept_apart(board, out)
        _write(board, out, loaded, benchmark)
    print_board(rows, str(out))
    return _exit_code(rows)


def _kept_apart(board: Board, out: Path) -> Path:
    """Return where a board goes that must not replace an answer to another question, and say so."""
    from harness.leaderboard.replacement import place_for

    place, reason = place_for(board.table, out)
    if reason:
        typer.echo(f"{out} is left as it is: {reason}; written: {place}", err=True)
    return place


def _set_aside(loaded: Benchmark, runs: Path) -> None:
    from harness import pipeline

    if old := pipeline.set_aside(loaded, runs):
        typer.echo(f"earlier results moved to {old}", err=True)


def _repair(folder: Path) -> None:
    from harness.engine.repair import repair

    kept = repair(folder)
    dropped = f"{kept.dropped:,} were damaged and are computed again" if kept.dropped else "none was damaged"
    typer.echo(f"{folder}: kept {kept.results:,} results; {dropped}", err=True)


def _executor_override(kind: str | None, address: str | None) -> list[str]:
    """Return ``--executor`` and ``--address`` as an override; it comes first, so that --set can add to it."""
    if address is not None and kind != "ray":
        raise SpecError(f"--address {address}: goes with --executor ray, found {kind or 'no --executor'}; add it")
    fields = {"kind": kind, "address": address}
    given = {key: value for key, value in fields.items() if value is not None}
    return [f"executor={json.dumps(given)}"] if given else []


def _fresh(path: Path, loaded: Benchmark, runs: Path, offline: bool) -> Board:
    """Run the benchmark that was read from ``path`` under a progress display."""
    with ended(orderly=False):  # nothing has begun, and these take seconds
        import torch  # noqa: F401

        from harness import pipeline
        from harness.cli.progress import ProgressBar
        from harness.leaderboard import outcomes, ranking
        from harness.leaderboard.regression import Board

    try:
        with ProgressBar() as progress:
            entries = pipeline.entries(loaded, runs=runs, offline=offline, listener=progress)
    except (DataError, SpecError) as error:  # a key of the file that only the data could show to be wrong
        raise type(error)(f"{path}: {error}") from error
    return Board(ranking.board(entries), outcomes.table(entries))


def _write(board: Board, out: Path, loaded: Benchmark, path: Path) -> None:
    """Write a board, its outcome file, and the question that was read from ``path``."""
    from harness.engine.provenance import git_commit, provenance
    from harness.leaderboard import board_files, question

    made_with = provenance("cpu") | {"git": git_commit(path.absolute().parent)}
    kept = {name: value for name, value in made_with.items() if not name.startswith("device")}  # in the rows
    board_files.write(board, out, question.document(loaded, kept))


def _writable(out: Path) -> None:
    """Refuse a board that cannot be written before hours of work, not after them."""
    from harness.leaderboard import board_files

    try:
        for path in board_files.paths_of(out).values():
            check_writable(path)
    except FileError as error:
        raise FileError(f"{error} with --out") from error


def _exit_code(rows: Sequence[LeaderboardRow]) -> int:
    failed = [row.kind == "failed" for row in rows]
    return UNDONE if all(failed) else NO if any(failed) else GOOD


@guarded
def check(
    benchmark: Annotated[Path, typer.Argument(help="The benchmark YAML.")],
    against: Annotated[Path, typer.Option(help="The committed leaderboard CSV, its outcome file beside it.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="Percentage points that no accuracy may fall by.")
    ] = None,
    accept_gains: Annotated[
        bool, typer.Option("--accept-gains", help="Pass where an accuracy rose by more than chance allows.")
    ] = False,
    summary: Annotated[Path | None, typer.Option(help="Write a Markdown summary.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Accept the fresh board on purpose.")] = False,
    runs: Annotated[
        Path | None, typer.Option(help="Ledger directory. (default: runs/check-<hash of the code>)")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> int:
    """Run a benchmark and hold it against a committed leaderboard: 0 held, 1 failed, 2 could not be compared."""
    from harness.config.benchmark import load_benchmark
    from harness.engine.provenance import code_sha256
    from harness.leaderboard import board_files, regression
    from harness.leaderboard.row import rows_of
    from harness.report import ci_summary

    loaded = load_benchmark(benchmark, overrides or ())
    committed = None if update else board_files.read_whole(against)
    for path in (*(board_files.paths_of(against).values() if update else []), *filter(None, (summary, junit))):
        check_writable(path)
    # results of another state of the code say nothing about this one
    fresh = _fresh(benchmark, loaded, runs or Path("runs") / f"check-{code_sha256()[:12]}", offline)
    if update:
        if _exit_code(rows_of(fresh.table)) != GOOD:
            raise LeaderboardError(f"{against}: not updated: a model failed; fix it, or take it out of the benchmark")
        _write(fresh, against, loaded, benchmark)
        typer.echo(f"accepted: {against}")
        return GOOD
    assert committed is not None
    verdicts = regression.check(fresh, committed, max_drop, accept_gains)
    if summary:
        write_whole(summary, ci_summary.markdown(loaded.name, verdicts))
    if junit:
        write_whole(junit, ci_summary.junit(loaded.name, verdicts))
    typer.echo(ci_summary.headline(loaded.name, verdicts))
    for row in verdicts:
        if row.verdict != "held":
            typer.echo(f"  {row.verdict}: {row.name}: {row.why}")
    if any(row.verdict == "risen" for row in verdicts):
        typer.echo("a broken attack raises accuracies too; if the rise is real, pass --accept-gains or --update")
    return NO if regression.failed(verdicts) else GOOD


@guarded
def doctor(
    benchmark: Annotated[Path, typer.Argument(help="The benchmark YAML.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key.")] = None,
    out: Annotated[Path | None, typer.Option(help="The CSV. (default: leaderboards/<name>.csv)")] = None,
    runs: Annotated[Path, typer.Option(help="Ledger directory.")] = Path("runs"),
    offline: Annotated[
        bool, typer.Option("--offline", help="As of run; nothing is downloaded without it either.")
    ] = True,
) -> int:
    """Check, before the hours are spent, whether a benchmark will run, and what it will cost: 0 ready, 2 not."""
    from harness.checks.doctor import doctor
    from harness.cli.terminal import print_findings
    from harness.config.benchmark import load_benchmark
    from harness.leaderboard import board_files

    loaded = load_benchmark(benchmark, overrides or ())
    out = out or Path("leaderboards") / f"{loaded.name}.csv"
    return GOOD if print_findings(doctor(loaded, runs=runs, out=[*board_files.paths_of(out).values()])) else UNDONE
