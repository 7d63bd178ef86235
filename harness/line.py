"""The line: from a benchmark to its leaderboard. The only place where all the parts meet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import leaderboard, spec
from harness.admission import Admission, Data, admit_model, open_data
from harness.errors import ModelError, SpecError
from harness.evaluate import source, workbench
from harness.execute import Observer, State, execute
from harness.gather import entry
from harness.leaderboard import Entry
from harness.ledger import Ledger
from harness.plan import Lane, grid, lanes, shards
from harness.replay import replays
from harness.selection import CrossValidation, Holdout
from harness.spec import Benchmark
from harness.types import Cell, Outcome, Preprocessing

if TYPE_CHECKING:
    import pandas as pd


class Silent:
    """An observer that looks away."""

    def started(self, state: State[Any], slots: int) -> None:
        """See `Observer`."""

    def advanced(self, state: State[Any], cell: Cell, outcome: Outcome) -> None:
        """See `Observer`."""

    def failed(self, label: str, error: ModelError) -> None:
        """See `Observer`."""


def run(
    benchmark: str | Path | Benchmark,
    *,
    overrides: Sequence[str] = (),
    runs: str | Path = "runs",
    offline: bool = False,
    observer: Observer | None = None,
) -> pd.DataFrame:
    """Run a benchmark and return its leaderboard: a row for each model and steering, best first.

    What the ledger under ``runs`` already holds is not computed again.

    Args:
        benchmark: the YAML file, or what `harness.spec.load` made of one.
        overrides: ``key.path=value``, as of ``ct-harness run --set``.
        runs: the folder of the ledgers.
        offline: refuse to download anything.
        observer: told of the progress.

    Raises:
        HarnessError: the benchmark cannot be run at all. A model that fails is a row whose ``status`` says why.

    Example:
        >>> table = run("benchmarks/digits_linf.yaml")  # doctest: +SKIP
    """
    if not isinstance(benchmark, Benchmark):
        benchmark = spec.load(benchmark, overrides)
    return leaderboard.board(entries(benchmark, runs=runs, offline=offline, observer=observer))


def entries(
    benchmark: Benchmark, *, runs: str | Path = "runs", offline: bool = False, observer: Observer | None = None
) -> list[Entry]:
    """Run a benchmark and return what the board says of each model, with the scores of every image; see `run`."""
    observer = observer or Silent()
    workbench.cache_clear()  # files may have changed since an earlier run of this process
    source.cache_clear()
    with Ledger(Path(runs) / benchmark.name) as ledger:  # first: an unwritable folder is told at once
        admissions = _admissions(benchmark, offline)
        for admission in admissions:
            if admission.failure is not None:
                observer.failed(admission.model.label, admission.failure)
        state = State(_lanes(benchmark, admissions), ledger)
        with benchmark.executor as executor:
            execute(state, executor, ledger, observer)
            shown = replays(state, ledger)
            replay = State(list(shown.values()), ledger)
            execute(replay, executor, ledger, observer)
    state.failures |= replay.failures
    replayed = {number: replay.values(position)[-1] for position, number in enumerate(shown) if replay.done[position]}
    return [entry(benchmark, admission, state, replayed) for admission in admissions]


def _admissions(benchmark: Benchmark, offline: bool) -> list[Admission]:
    """Each model, with the images as it sees them: those that want the same preprocessing share them."""
    seen: dict[Preprocessing, Data] = {}
    admissions = []
    for model in benchmark.models:
        try:
            preprocessing = model.preprocessing
        except ModelError as error:
            admissions.append(Admission(model, failure=error))
            continue
        if preprocessing not in seen:
            seen[preprocessing] = open_data(benchmark.dataset, offline, preprocessing)
            enough_for(benchmark, len(seen[preprocessing].labels))
            few = tuple(seen[preprocessing].digests)[:8]
            benchmark.threat.prepare(source(benchmark.dataset, preprocessing, offline).read(few), offline=offline)
        admissions.append(admit_model(benchmark, model, seen[preprocessing], offline))
    return admissions


def enough_for(benchmark: Benchmark, n: int) -> None:
    """Refuse a choice of β that ``n`` images are too few for.

    Raises:
        SpecError: more folds than images, or a share that leaves none to choose on.
    """
    if isinstance(benchmark.selection, CrossValidation) and benchmark.selection.folds > n:
        raise SpecError(
            f"selection.folds: {benchmark.selection.folds} folds of {n} images; use fewer folds or more images"
        )
    if isinstance(benchmark.selection, Holdout) and not int(benchmark.selection.share * n) >= 1:
        raise SpecError(
            f"selection.share: {benchmark.selection.share:g} of {n} images leaves none to choose on; "
            "use a larger share or more images"
        )


def _lanes(benchmark: Benchmark, admissions: Sequence[Admission]) -> list[Lane]:
    steering = benchmark.steering
    made: list[Lane] = []
    for admission in admissions:
        if admission.task is not None and admission.coverage is not None and admission.data is not None:
            native = admission.coverage.native
            points = grid(steering.beta, steering.c, steering.sites, steering.family, native)
            made += lanes(admission.task, points, shards(admission.data.digests, benchmark.batch_size))
    return made
