"""The line: from a benchmark to its leaderboard. The only place where all the parts meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.analysis.selection import OnTraining, Scored, better, selection_sets
from harness.api.work import Cell, Outcome
from harness.config.benchmark import Benchmark, Full, load_benchmark
from harness.engine.images import source
from harness.engine.ledger import Ledger
from harness.engine.prepare import PreparedModel, _grid, prepare_models
from harness.engine.scheduler import ProgressListener, Scheduler
from harness.engine.session import model_session
from harness.errors import ModelError
from harness.leaderboard.assemble import entry
from harness.leaderboard.ranking import board
from harness.leaderboard.scores import ModelEntry
from harness.scheduling.best_first import BestFirstSearch
from harness.scheduling.margins import Margins, margins, smallest_margin_first
from harness.scheduling.policies import BestFirstPolicy, FullGridPolicy, SchedulingPolicy
from harness.scheduling.replay import replays
from harness.scheduling.state import RunProgress
from harness.scheduling.training_scores import TrainingScores, scored, training_score_chains
from harness.scheduling.trials import TrialChain, chains, shards

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


class NullListener:
    """An observer that looks away."""

    def started(self, policy: SchedulingPolicy, known: int, slots: int) -> None:
        """See `ProgressListener`."""

    def advanced(self, policy: SchedulingPolicy, cell: Cell, outcome: Outcome) -> None:
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

    What the ledger under ``runs`` already holds is not computed again.

    Args:
        benchmark: the YAML file, or what `harness.config.benchmark.load_benchmark` made of one.
        overrides: ``key.path=value``, as of ``ct-harness run --set``.
        runs: the folder of the ledgers.
        offline: refuse to download anything.
        listener: told of the progress.

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
    """Run a benchmark and return what the board says of each model, with the scores of every image; see `run`."""
    listener = listener or NullListener()
    model_session.cache_clear()  # files may have changed since an earlier run of this process
    source.cache_clear()
    with Ledger(Path(runs) / benchmark.name) as ledger:  # first: an unwritable folder is told at once
        prepared_models = prepare_models(benchmark, offline)
        for prepared_model in prepared_models:
            if prepared_model.failure is not None:
                listener.failed(prepared_model.model.label, prepared_model.failure)
        with benchmark.executor as executor:
            scheduler = Scheduler(executor, ledger, listener)
            first = RunProgress(_margins(benchmark, prepared_models), scheduler.ledger)
            scheduler.compute(first, FullGridPolicy(first))
            training_scores = _scored_on_training(benchmark, prepared_models, first.failures, scheduler)
            state = _searched(benchmark, prepared_models, first, training_scores, scheduler)
            replayed = _replayed(state, scheduler)
    return [entry(benchmark, one, state, replayed, training_scores.get(one.model.label, ())) for one in prepared_models]


ScoresOnTraining = Mapping[str, Sequence[Scored]]
"""The scores on training images by the model's label, where β is chosen on those."""


def _scored_on_training(
    benchmark: Benchmark,
    prepared_models: Sequence[PreparedModel],
    failures: dict[str, ModelError],
    scheduler: Scheduler,
) -> ScoresOnTraining:
    """Every steering's scores on the training images; what fails is added to ``failures``."""
    if not isinstance(benchmark.selection, OnTraining):
        return {}
    ready = [one for one in prepared_models if one.training is not None and one.model.label not in failures]
    state = RunProgress([chain for one in ready for chain in _training_score_chains(benchmark, one)], scheduler.ledger)
    scheduler.compute(state, FullGridPolicy(state))
    failures |= state.failures
    labels = (one.model.label for one in ready)
    return {label: scored(state, label) for label in labels if label not in failures}


def _training_score_chains(benchmark: Benchmark, prepared_model: PreparedModel) -> list[TrainingScores]:
    assert prepared_model.task is not None
    assert prepared_model.training is not None
    return training_score_chains(prepared_model.task, _grid(benchmark, prepared_model), prepared_model.training)


def _searched(
    benchmark: Benchmark,
    prepared_models: Sequence[PreparedModel],
    first: RunProgress[Margins],
    training_scores: ScoresOnTraining,
    scheduler: Scheduler,
) -> RunProgress[TrialChain]:
    """The lanes of all models, as far as the search took them."""
    state = RunProgress(_chains(benchmark, prepared_models, first), scheduler.ledger)
    state.failures |= first.failures
    if isinstance(benchmark.search, Full) or not benchmark.threat.stages:  # nothing to give up
        scheduler.compute(state, FullGridPolicy(state))
    else:
        searches = BestFirstPolicy(
            state, _searches(benchmark, benchmark.search.top, prepared_models, state, training_scores)
        )
        scheduler.compute(state, searches)
        searches.discard_unasked()
    return state


def _replayed(state: RunProgress[TrialChain], scheduler: Scheduler) -> dict[int, np.ndarray]:
    """What stands after the replay, [n], by the number of the lane; for lanes that had something to be shown."""
    candidates = replays(state, scheduler.ledger)
    replay = RunProgress(list(candidates.values()), scheduler.ledger)
    scheduler.compute(replay, FullGridPolicy(replay))
    state.failures |= replay.failures
    return {number: replay.values(position)[-1] for position, number in enumerate(candidates) if replay.done[position]}


def _margins(benchmark: Benchmark, prepared_models: Sequence[PreparedModel]) -> list[Margins]:
    if not benchmark.threat.stages:
        return []  # nothing is given up, so the order is of no account
    return [
        chain
        for prepared_model in prepared_models
        if prepared_model.task is not None and prepared_model.data is not None
        for chain in margins(prepared_model.task, prepared_model.data.digests, benchmark.batch_size)
    ]


def _chains(
    benchmark: Benchmark, prepared_models: Sequence[PreparedModel], first: RunProgress[Margins]
) -> list[TrialChain]:
    """Of every model whose margins are known, its data cut most fragile first."""
    made: list[TrialChain] = []
    for prepared_model in prepared_models:
        task, data = prepared_model.task, prepared_model.data
        if task is None or data is None or task.label in first.failures:
            continue
        own = [first.values(number)[0] for number in first.of(task.label)]
        ordered = smallest_margin_first(data.digests, own) if own else data.digests
        cut = shards(ordered, benchmark.batch_size)
        made += chains(task, _grid(benchmark, prepared_model), cut)
    return made


def _searches(
    benchmark: Benchmark,
    top: int,
    prepared_models: Sequence[PreparedModel],
    state: RunProgress[TrialChain],
    training_scores: ScoresOnTraining,
) -> dict[str, BestFirstSearch]:
    """For each model; the other methods are always finished, and so is the β that training images chose."""
    searches = {}
    for prepared_model in prepared_models:
        label, data = prepared_model.model.label, prepared_model.data
        own = state.of(label)
        if own and data is not None:
            sets = [chosen_on for chosen_on, _ in selection_sets(benchmark.selection, data.strata, benchmark.seed)]
            asked = {chain.steering for chain in own.values() if chain.steering.method}
            asked |= {min(scores, key=better).steering for scores in (training_scores.get(label),) if scores}
            searches[label] = BestFirstSearch(own, list(data.digests), sets, top, asked)
    return searches
