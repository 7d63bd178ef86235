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
from harness.engine.prepare import Admission, _admissions, _grid
from harness.engine.scheduler import Crew, Observer
from harness.engine.session import workbench
from harness.errors import ModelError
from harness.leaderboard import csv_file
from harness.leaderboard.assemble import entry
from harness.leaderboard.csv_file import Entry
from harness.scheduling.best_first import Race
from harness.scheduling.margins import Margins, margins, most_fragile_first
from harness.scheduling.policies import Agenda, Everything, Races
from harness.scheduling.replay import replays
from harness.scheduling.state import State
from harness.scheduling.training_scores import Rehearsal, rehearsals, scored
from harness.scheduling.trials import Lane, lanes, shards

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


class Silent:
    """An observer that looks away."""

    def started(self, agenda: Agenda, known: int, slots: int) -> None:
        """See `Observer`."""

    def advanced(self, agenda: Agenda, cell: Cell, outcome: Outcome) -> None:
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
        benchmark: the YAML file, or what `harness.config.benchmark.load_benchmark` made of one.
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
        benchmark = load_benchmark(benchmark, overrides)
    return csv_file.board(entries(benchmark, runs=runs, offline=offline, observer=observer))


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
        with benchmark.executor as executor:
            crew = Crew(executor, ledger, observer)
            first = State(_margins(benchmark, admissions), crew.ledger)
            crew.compute(first, Everything(first))
            rehearsed = _rehearsed(benchmark, admissions, first.failures, crew)
            state = _searched(benchmark, admissions, first, rehearsed, crew)
            replayed = _replayed(state, crew)
    return [entry(benchmark, one, state, replayed, rehearsed.get(one.model.label, ())) for one in admissions]


Rehearsed = Mapping[str, Sequence[Scored]]
"""The scores on training images by the model's label, where β is chosen on those."""


def _rehearsed(
    benchmark: Benchmark, admissions: Sequence[Admission], failures: dict[str, ModelError], crew: Crew
) -> Rehearsed:
    """Every steering's scores on the training images; what fails is added to ``failures``."""
    if not isinstance(benchmark.selection, OnTraining):
        return {}
    ready = [one for one in admissions if one.training is not None and one.model.label not in failures]
    state = State([track for one in ready for track in _rehearsals(benchmark, one)], crew.ledger)
    crew.compute(state, Everything(state))
    failures |= state.failures
    labels = (one.model.label for one in ready)
    return {label: scored(state, label) for label in labels if label not in failures}


def _rehearsals(benchmark: Benchmark, admission: Admission) -> list[Rehearsal]:
    assert admission.task is not None
    assert admission.training is not None
    return rehearsals(admission.task, _grid(benchmark, admission), admission.training)


def _searched(
    benchmark: Benchmark, admissions: Sequence[Admission], first: State[Margins], rehearsed: Rehearsed, crew: Crew
) -> State[Lane]:
    """The lanes of all models, as far as the search took them."""
    state = State(_lanes(benchmark, admissions, first), crew.ledger)
    state.failures |= first.failures
    if isinstance(benchmark.search, Full) or not benchmark.threat.stages:  # nothing to give up
        crew.compute(state, Everything(state))
    else:
        races = Races(state, _races(benchmark, benchmark.search.top, admissions, state, rehearsed))
        crew.compute(state, races)
        races.forget_what_nobody_asked_for()
    return state


def _replayed(state: State[Lane], crew: Crew) -> dict[int, np.ndarray]:
    """What stands after the replay, [n], by the number of the lane; for lanes that had something to be shown."""
    shown = replays(state, crew.ledger)
    replay = State(list(shown.values()), crew.ledger)
    crew.compute(replay, Everything(replay))
    state.failures |= replay.failures
    return {number: replay.values(position)[-1] for position, number in enumerate(shown) if replay.done[position]}


def _margins(benchmark: Benchmark, admissions: Sequence[Admission]) -> list[Margins]:
    if not benchmark.threat.stages:
        return []  # nothing is given up, so the order is of no account
    return [
        track
        for admission in admissions
        if admission.task is not None and admission.data is not None
        for track in margins(admission.task, admission.data.digests, benchmark.batch_size)
    ]


def _lanes(benchmark: Benchmark, admissions: Sequence[Admission], first: State[Margins]) -> list[Lane]:
    """Of every model whose margins are known, its data cut most fragile first."""
    made: list[Lane] = []
    for admission in admissions:
        task, data = admission.task, admission.data
        if task is None or data is None or task.label in first.failures:
            continue
        own = [first.values(number)[0] for number in first.of(task.label)]
        ordered = most_fragile_first(data.digests, own) if own else data.digests
        cut = shards(ordered, benchmark.batch_size)
        made += lanes(task, _grid(benchmark, admission), cut)
    return made


def _races(
    benchmark: Benchmark, top: int, admissions: Sequence[Admission], state: State[Lane], rehearsed: Rehearsed
) -> dict[str, Race]:
    """For each model; the other methods are always finished, and so is the β that training images chose."""
    races = {}
    for admission in admissions:
        label, data = admission.model.label, admission.data
        own = state.of(label)
        if own and data is not None:
            sets = [chosen_on for chosen_on, _ in selection_sets(benchmark.selection, data.strata, benchmark.seed)]
            asked = {lane.steering for lane in own.values() if lane.steering.method}
            asked |= {min(scores, key=better).steering for scores in (rehearsed.get(label),) if scores}
            races[label] = Race(own, list(data.digests), sets, top, asked)
    return races
