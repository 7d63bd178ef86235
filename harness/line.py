"""The line: from a benchmark to its leaderboard. The only place where all the parts meet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness import leaderboard, spec
from harness.admission import Admission, Data, admit_model, open_data
from harness.execute import Observer, State, execute
from harness.leaderboard import Entry, Score
from harness.ledger import Ledger
from harness.plan import grid, lanes, shards
from harness.spec import Benchmark
from harness.types import Cell, Outcome, Steering

if TYPE_CHECKING:
    import pandas as pd

    from harness.errors import ModelError


class Silent:
    """An observer that looks away."""

    def started(self, state: State, slots: int) -> None:
        """See `Observer`."""

    def advanced(self, state: State, cell: Cell, outcome: Outcome) -> None:
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
    observer = observer or Silent()
    with Ledger(Path(runs) / benchmark.name) as ledger:  # first: an unwritable folder is told at once
        data = open_data(benchmark.dataset, offline)
        admissions = [admit_model(benchmark, model, data, offline) for model in benchmark.models]
        for admission in admissions:
            if admission.failure is not None:
                observer.failed(admission.model.label, admission.failure)
        cut = shards(data.digests, benchmark.batch_size)
        steerings = grid(benchmark.steering.beta, benchmark.steering.c, benchmark.steering.sites)
        state = State(
            [
                lane
                for admission in admissions
                if admission.task is not None
                for lane in lanes(admission.task, steerings, cut)
            ],
            ledger,
        )
        execute(state, benchmark.executor, ledger, observer)
    return leaderboard.board(_entry(benchmark, admission, data, state) for admission in admissions)


def _entry(benchmark: Benchmark, admission: Admission, data: Data, state: State) -> Entry:
    """What the board says of one model."""
    label = admission.model.label
    shared: dict[str, str | int] = {
        "model": label,
        "dataset": benchmark.dataset.label,
        **benchmark.threat.columns(),
        "n": len(data.digests),
        "seed": benchmark.seed,
        "batch_size": benchmark.batch_size,
        "data_sha256": data.sha256,
    }
    failure = admission.failure or state.failures.get(label)
    if admission.task is None or failure is not None:
        return Entry(shared, failure=str(failure), flag=failure.flag if failure else None)
    shared["weights_sha256"] = admission.task.weights_sha256
    by_steering: dict[Steering, list[int]] = {}
    for number, lane in enumerate(state.lanes):
        if lane.task.label == label:
            by_steering.setdefault(lane.steering, []).append(number)
    scores = [_score(steering, state, numbers) for steering, numbers in by_steering.items()]
    return Entry(shared, scores, admission.coverage)


def _score(steering: Steering, state: State, numbers: Sequence[int]) -> Score:
    """One steering's shards put together again, in the order of the images."""
    scores = [state.lanes[number].scores([outcome.values for outcome in state.done[number]]) for number in numbers]
    outcomes = [outcome for number in numbers for outcome in state.done[number]]
    return Score(
        steering=steering,
        clean=np.concatenate([clean for clean, _ in scores]),
        robust=np.concatenate([robust for _, robust in scores]),
        flags=frozenset(flag for outcome in outcomes for flag in outcome.flags),
        seconds=sum(outcome.seconds for outcome in outcomes),
        versions={
            name: "+".join(sorted({outcome.provenance[name] for outcome in outcomes}))
            for name in ("ct_harness", "torch", "device")
        },
    )
