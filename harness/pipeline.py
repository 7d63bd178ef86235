"""The pipeline: a benchmark in, its leaderboard out. The only place where all the parts meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.analysis.selection import OnTraining, Scored, better, selection_sets
from harness.api.work import Cell, Outcome
from harness.config.benchmark import Benchmark, Full, load_benchmark
from harness.engine.images import source
from harness.engine.ledger import Ledger
from harness.engine.prepare import PreparedModel, prepare_models, steerings_of
from harness.engine.scheduler import ProgressListener, Scheduler
from harness.engine.session import model_session
from harness.errors import ModelError
from harness.leaderboard import assemble
from harness.leaderboard.ranking import board
from harness.leaderboard.scores import ModelEntry
from harness.scheduling.best_first import BestFirstSearch
from harness.scheduling.margins import Margins, margin_chains, smallest_margin_first
from harness.scheduling.policies import BestFirstPolicy, FullGridPolicy, SchedulingPolicy
from harness.scheduling.replay import replays
from harness.scheduling.state import RunProgress
from harness.scheduling.training_scores import TrainingScores, scores_of, training_score_chains
from harness.scheduling.trials import TrialChain, chains, shards

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


class NullListener:
    """A progress listener that ignores every event."""

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

    Cells whose outcomes are in the ledger under ``runs`` are not computed again.

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
        models = prepare_models(benchmark, offline)
        for model in models:
            if model.failure is not None:
                listener.failed(model.label, model.failure)
        with benchmark.executor as executor:
            scheduler = Scheduler(executor, ledger, listener)
            margins = scheduler.compute_all(_margin_chains(benchmark, models))
            training_scores = _score_training_folds(benchmark, models, scheduler)
            progress = _search(benchmark, models, margins, training_scores, scheduler)
            replayed = _replay(progress, scheduler)
    return [
        assemble.entry(benchmark, model, progress, replayed, training_scores.get(model.label, ())) for model in models
    ]


ScoresByModel = Mapping[str, Sequence[Scored]]
"""Scores on the training images by the model's label; empty unless β is chosen on them."""


def _margin_chains(benchmark: Benchmark, models: Sequence[PreparedModel]) -> list[Margins]:
    """Return the chains that measure the margin of every image, by which the images are ordered."""
    if not benchmark.threat.stages:
        return []  # without attacks there is nothing to prune, and the order does not matter
    return [
        chain
        for model in models
        if model.task is not None and model.data is not None
        for chain in margin_chains(model.task, model.data.digests, benchmark.batch_size)
    ]


def _score_training_folds(benchmark: Benchmark, models: Sequence[PreparedModel], scheduler: Scheduler) -> ScoresByModel:
    """Score every steering by cross-validation on the training images, if β is chosen on them."""
    if not isinstance(benchmark.selection, OnTraining):
        return {}
    fitted = [model for model in models if model.training is not None and model.label not in scheduler.failures]
    progress = scheduler.compute_all([chain for model in fitted for chain in _training_chains(benchmark, model)])
    return {model.label: scores_of(progress, model.label) for model in fitted if model.label not in scheduler.failures}


def _training_chains(benchmark: Benchmark, model: PreparedModel) -> list[TrainingScores]:
    assert model.task is not None
    assert model.training is not None
    return training_score_chains(model.task, steerings_of(benchmark, model), model.training)


def _search(
    benchmark: Benchmark,
    models: Sequence[PreparedModel],
    margins: RunProgress[Margins],
    training_scores: ScoresByModel,
    scheduler: Scheduler,
) -> RunProgress[TrialChain]:
    """Score the grid of every model: all of it, or as much as the best-first search needs."""
    progress = scheduler.progress(_trial_chains(benchmark, models, margins))
    if isinstance(benchmark.search, Full) or not benchmark.threat.stages:  # without attacks there is nothing to prune
        scheduler.compute(progress, FullGridPolicy(progress))
        return progress
    policy = BestFirstPolicy(progress, _searches(benchmark, benchmark.search.top, models, progress, training_scores))
    scheduler.compute(progress, policy)
    policy.discard_unasked()
    return progress


def _trial_chains(
    benchmark: Benchmark, models: Sequence[PreparedModel], margins: RunProgress[Margins]
) -> list[TrialChain]:
    """Return the chains of every model that has not failed, over its images with the smallest margin first."""
    result: list[TrialChain] = []
    for model in models:
        task, data = model.task, model.data
        if task is None or data is None or model.label in margins.failures:
            continue
        by_shard = [margins.values(number)[0] for number in margins.of(model.label)]
        ordered = smallest_margin_first(data.digests, by_shard) if by_shard else data.digests
        result += chains(task, steerings_of(benchmark, model), shards(ordered, benchmark.batch_size))
    return result


def _searches(
    benchmark: Benchmark,
    top: int,
    models: Sequence[PreparedModel],
    progress: RunProgress[TrialChain],
    training_scores: ScoresByModel,
) -> dict[str, BestFirstSearch]:
    """Return a search for each model. Other methods are always finished, and so is a β chosen on training images."""
    searches = {}
    for model in models:
        own = progress.of(model.label)
        if own and model.data is not None:
            choices = selection_sets(benchmark.selection, model.data.strata, benchmark.seed)
            required = {chain.steering for chain in own.values() if chain.steering.method}
            if scores := training_scores.get(model.label):
                required.add(min(scores, key=better).steering)
            images, sets = list(model.data.digests), [chosen_on for chosen_on, _ in choices]
            searches[model.label] = BestFirstSearch(own, images, sets, top, required)
    return searches


def _replay(progress: RunProgress[TrialChain], scheduler: Scheduler) -> dict[int, np.ndarray]:
    """Replay what fooled any steering on the others.

    Returns:
        The outcome after the replay, [n], by the chain's number; only for chains that had a replay.
    """
    wanted = replays(progress)
    replayed = scheduler.compute_all(list(wanted.values()))
    return {number: replayed.values(position)[-1] for position, number in enumerate(wanted) if replayed.done[position]}
