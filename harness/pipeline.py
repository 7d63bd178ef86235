"""The pipeline: a benchmark in, its leaderboard out. The only place where all the parts meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from harness.analysis.metrics import METRICS
from harness.analysis.selection import OnTraining, Scored, better, selection_sets
from harness.api.work import Report
from harness.config.benchmark import Benchmark, Full, load_benchmark
from harness.engine.images import source
from harness.engine.ledger import Ledger
from harness.engine.prepare import PreparedModel, prepare_models, steerings_of
from harness.engine.recognition import recognised
from harness.engine.scheduler import ModelRun, ProgressListener, Scheduler
from harness.engine.session import model_session
from harness.errors import ModelError
from harness.leaderboard import assemble
from harness.leaderboard.ranking import board
from harness.leaderboard.scores import ModelEntry
from harness.scheduling.guided import GuidedSearch
from harness.scheduling.training_scores import TrainingScores

if TYPE_CHECKING:
    import pandas as pd


class NullListener:
    """A progress listener that ignores every event."""

    def started(self, workers: int) -> None:
        """See `ProgressListener`."""

    def advanced(self, label: str, computed: Sequence[Report], left: float) -> None:
        """See `ProgressListener`."""

    def stale(self, label: str, why: str) -> None:
        """See `ProgressListener`."""

    def failed(self, label: str, error: ModelError) -> None:
        """See `ProgressListener`."""


def run(
    benchmark: str | Path | Benchmark,
    *,
    overrides: Sequence[str] = (),
    runs: str | Path = "runs",
    offline: bool = False,
    listener: ProgressListener | None = None,
) -> pd.DataFrame:
    """Run a benchmark and return its leaderboard: a row for each model and steering, best first.

    Trials whose results are in the ledger under ``runs`` are not computed again.

    Args:
        benchmark: path of the YAML file, or a benchmark from `harness.config.benchmark.load_benchmark`.
        overrides: changes to the YAML, ``key.path=value`` each, as for ``ct-harness run --set``.
        runs: directory of the ledgers.
        offline: whether to refuse every download.
        listener: receives the events of the run, to display its progress.

    Raises:
        HarnessError: the benchmark cannot be run at all. A model that fails is a row whose ``status`` says why.

    Example:
        >>> table = run("benchmarks/digits_linf.yaml")  # doctest: +SKIP
    """
    if not isinstance(benchmark, Benchmark):
        benchmark = load_benchmark(benchmark, overrides)
    return board(entries(benchmark, runs=runs, offline=offline, listener=listener))


def entries(
    benchmark: Benchmark, *, runs: str | Path = "runs", offline: bool = False, listener: ProgressListener | None = None
) -> list[ModelEntry]:
    """Run a benchmark and return each model's part of the leaderboard, with the scores of every image; see `run`."""
    listener = listener or NullListener()
    model_session.cache_clear()  # files may have changed since an earlier run in this process
    source.cache_clear()
    with Ledger(Path(runs) / benchmark.name) as ledger:  # opened first, so that an unwritable directory fails at once
        models = [_recognised(model, ledger, listener) for model in prepare_models(benchmark, offline)]
        for model in models:
            if model.failure is not None:
                listener.failed(model.label, model.failure)
        with benchmark.executor as executor:
            scheduler = Scheduler(executor, ledger, listener)
            training_scores = _score_training_folds(benchmark, models, scheduler)
            searches = {
                model.label: _search(benchmark, model, training_scores.get(model.label, ()))
                for model in models
                if model.task is not None and model.label not in scheduler.failures
            }
            scheduler.run(list(searches.values()))
    return [
        assemble.entry(
            benchmark, model, searches.get(model.label), scheduler.failures, training_scores.get(model.label, ())
        )
        for model in models
    ]


def set_aside(benchmark: Benchmark, runs: str | Path = "runs") -> Path | None:
    """Move a ledger away, so that all is computed again; return where it is now, or None where there was none.

    Raises:
        LedgerError: another run uses the ledger.
    """
    folder = Path(runs) / benchmark.name
    if not folder.exists():
        return None
    with Ledger(folder):  # which only one run can open
        free = (folder.with_name(f"{folder.name}.old-{number}") for number in count(1))
        return folder.rename(next(path for path in free if not path.exists()))


def _recognised(model: PreparedModel, ledger: Ledger, listener: ProgressListener) -> PreparedModel:
    """Return the model under the answers that the ledger knows it by, and tell if results there are stale."""
    if model.task is None:
        return model
    task, why = recognised(model.task, ledger.contexts())
    if why:
        listener.stale(model.label, why)
    return replace(model, task=task)


def _score_training_folds(
    benchmark: Benchmark, models: Sequence[PreparedModel], scheduler: Scheduler
) -> Mapping[str, Sequence[Scored]]:
    """Score every steering by cross-validation on the training images, by model; empty unless β is chosen on them."""
    if not isinstance(benchmark.selection, OnTraining):
        return {}
    courses: dict[str, tuple[ModelRun, TrainingScores]] = {}
    for model in models:
        if model.training is not None and model.task is not None:
            digests = model.training.digests
            course = TrainingScores(steerings_of(benchmark, model), model.training)
            courses[model.label] = ModelRun(model.task, course, digests, model.shape), course
    scheduler.run([run for run, _ in courses.values()])
    return {label: course.scores() for label, (_, course) in courses.items() if label not in scheduler.failures}


def _search(benchmark: Benchmark, model: PreparedModel, training_scores: Sequence[Scored]) -> ModelRun:
    """Return the search over one model's grid: all of it, or as much as it takes to find the best β.

    Other methods are always finished, and so is a β chosen on training images.
    """
    assert model.task is not None
    assert model.data is not None
    sets = [chosen_on for chosen_on, _ in selection_sets(benchmark.selection, model.data.strata, benchmark.seed)]
    search = GuidedSearch(
        benchmark.threat,
        steerings_of(benchmark, model),
        model.data.digests,
        sets,
        top=None if isinstance(benchmark.search, Full) else benchmark.search.top,
        required=[min(training_scores, key=better).steering] if training_scores else (),
        most=METRICS[benchmark.dataset.target].most,
    )
    return ModelRun(model.task, search, model.data.digests, model.shape)
