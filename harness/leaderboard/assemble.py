"""From the outcomes of each shard and stage to the scores of each model. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from harness.analysis.metrics import METRICS
from harness.analysis.selection import CrossValidation, InSample, Scored, choose, selection_sets
from harness.analysis.selection_inference import of_procedure
from harness.analysis.statistics import paired
from harness.api.dataset import Data
from harness.api.records import Published, Steering
from harness.api.work import Outcome, Task
from harness.config.benchmark import Benchmark
from harness.engine.prepare import PreparedModel
from harness.leaderboard import flags
from harness.leaderboard.row import IN_SAMPLE, SELECTED
from harness.leaderboard.scores import Headline, ModelEntry, Score
from harness.scheduling.state import RunProgress
from harness.scheduling.trials import TrialChain

Replayed = Mapping[int, np.ndarray]
"""Robust scores [n] after the replay, by the number of the trial chain; for chains that had candidates to replay."""


def entry(
    benchmark: Benchmark,
    prepared_model: PreparedModel,
    state: RunProgress[TrialChain],
    replayed: Replayed,
    training_scores: Sequence[Scored] = (),
) -> ModelEntry:
    """Return the scores of one model, and the choice of β that follows from them.

    Args:
        benchmark: the benchmark that was run.
        prepared_model: the model and its data.
        state: outcomes of all trial chains.
        replayed: outcomes of the replay.
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
        "seed": benchmark.seed,
        "batch_size": benchmark.batch_size,
        **_beside(published, benchmark),
    }
    if data is not None:
        shared |= {"n": len(data.digests), "data_sha256": data.sha256}
    failure = prepared_model.failure or state.failures.get(label)
    if prepared_model.task is None or prepared_model.coverage is None or data is None or failure is not None:
        return ModelEntry(shared, failure=str(failure), flag=failure.flag if failure else None)
    shared["weights_sha256"] = prepared_model.task.weights_sha256
    shared |= {"fitted_from": "", "train": ""}
    if prepared_model.training is not None:
        shared |= {"fitted_from": prepared_model.task.weights_sha256, "train": prepared_model.model.trained_how}
    by_steering: dict[Steering, list[int]] = {}
    for number, chain in state.of(label).items():
        by_steering.setdefault(chain.steering, []).append(number)
    images = {image: position for position, image in enumerate(data.digests)}
    marks = flags.of_coverage(prepared_model.coverage, benchmark.steering.family) | flags.of_protocol(
        benchmark.protocol
    )
    if prepared_model.training is not None:
        marks |= flags.of_training(prepared_model.training.pixels, data.pixels)
    scores = [
        _score(steering, state, numbers, images, replayed, benchmark.replay_points, marks)
        for steering, numbers in by_steering.items()
    ]
    scores = [_compared(score, published) for score in scores]
    headline = _headline(benchmark, scores, data, training_scores)
    metric = METRICS[benchmark.dataset.target]
    return ModelEntry(shared, scores, headline, prepared_model.coverage, prepared_model.trainable, metric)


def _threat(benchmark: Benchmark) -> dict[str, str]:
    """Return the columns of the threat, the shortcuts taken being part of its attack."""
    columns = dict(benchmark.threat.columns())
    if benchmark.threat.attacks:
        columns["attack"] = "+".join([columns["attack"], *shortcuts(benchmark)])
    return columns


def shortcuts(benchmark: Benchmark) -> list[str]:
    """Return the settings that make the attacks cheaper than their authors'."""
    lower = [] if benchmark.precision == "float32" else [benchmark.precision]
    return lower + (["replay_first"] if benchmark.replay_first else [])


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


def _score(
    steering: Steering,
    state: RunProgress[TrialChain],
    numbers: Sequence[int],
    images: Mapping[int, int],
    replayed: Replayed,
    replay_points: float,
    marks: set[str],
) -> Score:
    """Join the shards of one steering.

    Args:
        steering: the steering.
        state: outcomes of all trial chains.
        numbers: chains of this steering.
        images: position of each image in the order of the data.
        replayed: outcomes of the replay.
        replay_points: percentage points that the replay may take without a flag.
        marks: flags that the score has already.
    """
    chains = [state.chains[number] for number in numbers]
    values = [state.values(number) for number in numbers]
    complete = all(chain.next(done) is None for chain, done in zip(chains, values, strict=True))
    order = np.argsort([images[image] for chain in chains for image in chain.shard.images])
    bounds = [chain.bounds(done) for chain, done in zip(chains, values, strict=True)]
    clean, robust = (np.concatenate(parts)[order] for parts in zip(*bounds, strict=True))
    stages = {
        stage: np.concatenate([_after(chain, done, position) for chain, done in zip(chains, values, strict=True)])[
            order
        ]
        for position, stage in enumerate(chains[0].stages)
    }
    replay, summary_columns = None, {}
    if complete:
        summary_columns = chains[0].task.threat.summary_columns(
            {stage: float(values.mean(dtype=np.float64)) for stage, values in stages.items()}
        )
        if chains[0].task.attacks and not steering.method:
            parts = [replayed.get(number, own) for number, (_, own) in zip(numbers, bounds, strict=True)]
            replay = np.concatenate(parts)[order]
            marks = marks | flags.of_stages(stages) | flags.of_replay(robust, replay, replay_points)
    outcomes = [outcome for number in numbers for outcome in state.done[number]]
    versions = _versions(chains[0].task, outcomes)
    marks = marks | flags.of_weights(versions["weights_sha256"])
    return Score(
        steering=steering,
        clean=clean,
        robust=robust,
        complete=complete,
        stages=stages,
        summary_columns=summary_columns,
        replay=replay,
        flags=frozenset(marks | {flag for outcome in outcomes for flag in outcome.flags}),
        seconds=sum(outcome.seconds for outcome in outcomes),
        versions=versions,
    )


def _versions(task: Task, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return the versions that computed the outcomes, and the hash of the weights, fitted ones where there are some."""

    def joined(name: str, found: Iterable[str]) -> tuple[str, str]:
        return name, "+".join(sorted(set(found)))

    weights = [outcome.provenance.get("weights_sha256", task.weights_sha256) for outcome in outcomes]
    names = ("ct_harness", "torch", "device")
    versions = [joined(name, (outcome.provenance[name] for outcome in outcomes)) for name in names]
    return dict([*versions, joined("weights_sha256", weights or [task.weights_sha256])])


def _after(chain: TrialChain, done: Sequence[np.ndarray], position: int) -> np.ndarray:
    """Return the scores [n] after a stage; NaN where it was not run, unless no image was left to attack."""
    if position < len(done):
        return done[position]
    unknown = np.full(len(chain.shard.images), np.nan, np.float32)
    if chain.task.threat.reduction == "mean" or not done:
        return unknown
    return np.where(done[-1] > 0, unknown, done[-1])
