"""From what is known of each trial to the scores of each model. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from harness.analysis.metrics import METRICS
from harness.analysis.selection import CrossValidation, InSample, Scored, choose, selection_sets
from harness.analysis.selection_inference import of_procedure
from harness.analysis.statistics import paired
from harness.api.dataset import Data
from harness.api.records import Published, Steering
from harness.api.work import Task
from harness.config.benchmark import Benchmark
from harness.engine.prepare import PreparedModel
from harness.engine.scheduler import ModelRun, Tally
from harness.errors import ModelError
from harness.leaderboard import flags, question
from harness.leaderboard.row import IN_SAMPLE, SELECTED
from harness.leaderboard.scores import Headline, ModelEntry, Score
from harness.scheduling.guided import GuidedSearch


def entry(
    benchmark: Benchmark,
    prepared_model: PreparedModel,
    scored: ModelRun | None,
    failures: Mapping[str, ModelError],
    training_scores: Sequence[Scored] = (),
) -> ModelEntry:
    """Return the scores of one model, and the choice of β that follows from them.

    Args:
        benchmark: the benchmark that was run.
        prepared_model: the model and its data.
        scored: its trials; None if it could not be prepared.
        failures: errors of the models that have failed, by label.
        training_scores: the model's scores on training images, where β is chosen there.
    """
    label, data = prepared_model.model.label, prepared_model.data
    published = prepared_model.model.published(benchmark.dataset.kind, benchmark.threat.kind)
    shared: dict[str, object] = {
        "model": label,
        "family": benchmark.steering.family,
        "dataset": benchmark.dataset.label,
        "metric": METRICS[benchmark.dataset.target].name,
        **_threat(benchmark),
        "protocol": benchmark.protocol,
        **question.columns(benchmark),
        "seed": benchmark.seed,
        **_beside(published, benchmark),
    }
    if data is not None:
        shared |= {"n": len(data.digests), "data_sha256": data.sha256}
    failure = prepared_model.failure or failures.get(label)
    coverage = prepared_model.coverage
    if scored is None or coverage is None or data is None or failure is not None:
        return ModelEntry(shared, failure=str(failure), flag=failure.flag if failure else None)
    shared |= {"weights_sha256": scored.task.weights_sha256, "fitted_from": "", "train": ""}
    marks = flags.of_coverage(coverage, benchmark.steering.family) | flags.of_protocol(benchmark.protocol)
    marks |= flags.of_images(len(data.pixels), len(data.digests))
    if prepared_model.training is not None:
        shared |= {"fitted_from": scored.task.weights_sha256, "train": prepared_model.model.trained_how}
        marks |= flags.of_training(prepared_model.training.pixels, data.pixels)
    search = scored.course
    assert isinstance(search, GuidedSearch)
    own = {steering: set(prepared_model.marks.get(steering.method, ())) for steering in search.steerings}
    scores = [
        _compared(_score(scored, search, steering, benchmark.replay_points, marks | own[steering]), published)
        for steering in search.steerings
    ]
    headline = _headline(benchmark, scores, data, training_scores)
    metric = METRICS[benchmark.dataset.target]
    lost = {**prepared_model.lost, **scored.lost}
    return ModelEntry(shared, scores, headline, coverage, prepared_model.trainable, metric, lost=lost)


def _threat(benchmark: Benchmark) -> dict[str, str]:
    """Return the columns of the threat, the shortcuts taken being part of its attack."""
    columns = dict(benchmark.threat.columns())
    if benchmark.threat.attacks:
        columns["attack"] = "+".join([columns["attack"], *shortcuts(benchmark)])
    return columns


def shortcuts(benchmark: Benchmark) -> list[str]:
    """Return the settings that make the attacks cheaper than their authors'."""
    return [] if benchmark.precision == "float32" else [benchmark.precision]


def _beside(published: Published | None, benchmark: Benchmark) -> dict[str, float | None]:
    """Return the published accuracies; the robust one only where it answers the same question."""
    if published is None:
        return {}
    threat = benchmark.threat
    comparable = threat.standard and benchmark.protocol == "pixel" and not shortcuts(benchmark)
    same_eps = threat.columns()["eps"] == ("" if published.eps is None else f"{published.eps:.6g}")
    return {
        "published_clean": published.clean,
        "published_robust": published.robust if comparable and same_eps else None,
    }


def _compared(score: Score, published: Published | None) -> Score:
    """Flag the score of the untouched network where it is unlike the published one."""
    if published is None or not score.steering.is_baseline:
        return score
    found = flags.of_published(score.clean, published.clean)
    return replace(score, flags=score.flags | found)


def _headline(benchmark: Benchmark, every: Sequence[Score], data: Data, training_scores: Sequence[Scored]) -> Headline:
    """Choose β among the steerings; other methods are not candidates."""
    selection, scores = benchmark.selection, [score for score in every if not score.steering.method]
    setting = {"cross_validation": "folds", "holdout": "share"}.get(selection.kind)
    name = f"{selection.kind}:{getattr(selection, setting):g}" if setting else selection.kind
    status = IN_SAMPLE if isinstance(selection, InSample) else SELECTED
    choice = choose(selection, scores, data.strata, benchmark.seed, training_scores)
    if isinstance(selection, CrossValidation):
        gain = of_procedure(scores, selection_sets(selection, data.strata, benchmark.seed), benchmark.seed)
    else:  # the choice is made on other images altogether, or is not to be trusted anyway
        (baseline,) = (score for score in scores if score.steering.is_baseline)
        gain = paired(baseline.robust[choice.reported], choice.scores(scores)[1])
    return Headline(name, choice, gain, status)


def _score(scored: ModelRun, search: GuidedSearch, steering: Steering, replay_points: float, marks: set[str]) -> Score:
    """Return the scores of one steering.

    Args:
        scored: the model's trials.
        search: the search that asked for them.
        steering: the steering.
        replay_points: percentage points that the replay may take without a flag.
        marks: flags that the score has already.
    """
    threat, tally = scored.task.threat, scored.tallies[steering]
    stages, robust = search.stages(steering), search.robust(steering)
    complete, own = search.finished(steering), search.own(steering)
    if complete and threat.attacks:
        marks = marks | flags.of_stages(stages) | flags.of_sentinels(search.sentinels(steering))
        marks = marks | flags.of_unit_test(search.unit_test(steering))
    if own is not None:
        marks = marks | flags.of_replay(own, robust, replay_points)
    versions = _versions(scored.task, tally)
    return Score(
        steering=steering,
        clean=search.clean(steering),
        robust=robust,
        complete=complete,
        stages=stages,
        summary_columns=threat.summary_columns(
            {stage: float(values.mean(dtype=np.float64)) for stage, values in stages.items()}
        )
        if complete
        else {},
        attacked=search.is_attacked,
        own=own,
        unit_test=search.unit_test(steering),
        flags=frozenset(marks | tally.flags | flags.of_weights(versions["weights_sha256"])),
        cost=tally.cost,
        versions=versions,
    )


def _versions(task: Task, tally: Tally) -> dict[str, str]:
    """Return what computed the results, and the hash of the weights, fitted ones where there are some."""

    def joined(name: str, default: str = "") -> str:
        return "+".join(sorted({provenance.get(name, default) for provenance in tally.provenances} - {""}))

    return {name: joined(name) for name in ("ct_harness", "torch", "device", "compiled")} | {
        "weights_sha256": joined("weights_sha256", task.weights_sha256)
    }
