"""The scheduler: the same results from any crew and in any order, and nothing computed twice."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers.tasks import BENCHMARK, task
from helpers.tiny import mapping
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PrivateAttr

from harness import pipeline
from harness.api.executor import Deliver, Executor
from harness.api.records import Steering
from harness.api.threat import Threat
from harness.api.trial import CLEAN, INDIVISIBLE, INSPECT, REPLAY, Answer, Attempt, Cost, Result, Trial
from harness.api.work import Portion, Report, Task
from harness.config.benchmark import parse_benchmark
from harness.engine import scheduler
from harness.engine.ledger import Ledger
from harness.engine.scheduler import ModelRun, Scheduler, portions
from harness.errors import LedgerError, MethodError, ModelError
from harness.leaderboard import csv_file, outcomes, ranking
from harness.pipeline import NullListener
from harness.scheduling.grid import grid
from harness.scheduling.guided import GuidedSearch
from harness.threats.lp import Linf

SHAPE = (1, 2, 2)
RANKS = 9


# --- the crew ---


class Crew(Executor):
    """Computes in one thread, and delivers what is in flight in a shuffled order, piece by piece.

    Args:
        workers: number of portions in flight.
        seed: seed of the order.
    """

    kind: ClassVar[str] = "crew"
    in_process: ClassVar[bool] = True
    workers: int = 1
    seed: int = 0

    _answered: Callable[[Portion], Sequence[Report]] = PrivateAttr()
    _computed: list[Trial] = PrivateAttr(default_factory=list)
    _waiting: list[tuple[Portion, Deliver, Future[None]]] = PrivateAttr(default_factory=list)
    _arrived: threading.Condition = PrivateAttr(default_factory=threading.Condition)
    _closed: bool = PrivateAttr(default=False)
    _thread: threading.Thread = PrivateAttr()

    def capacity(self, device: str) -> int:
        return self.workers

    @property
    def computed(self) -> list[Trial]:
        """Every trial that was computed."""
        return self._computed

    def __enter__(self) -> Crew:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._arrived:
            self._closed = True
            self._arrived.notify()
        self._thread.join()

    def submit(self, portion: Portion, deliver: Deliver) -> Future[None]:
        future: Future[None] = Future()
        with self._arrived:
            self._waiting.append((portion, deliver, future))
            assert len(self._waiting) <= self.workers
            self._arrived.notify()
        return future

    def _work(self) -> None:
        drawn = random.Random(self.seed)
        pieces: dict[Future[None], list[Report]] = {}
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self._arrived.wait(0.002)  # for others, so that there is something to shuffle
                portion, deliver, future = drawn.choice(self._waiting)
            try:
                if future not in pieces:
                    pieces[future] = list(cut(self._answered(portion), drawn))
                    self._computed += portion.trials
            except Exception as error:
                self._end(future)
                future.set_exception(error)
            else:
                some = [pieces[future].pop() for _ in range(min(len(pieces[future]), drawn.randint(1, 3)))]
                deliver(some)
                if not pieces[future]:
                    self._end(future)
                    future.set_result(None)

    def _end(self, future: Future[None]) -> None:
        with self._arrived:
            self._waiting = [one for one in self._waiting if one[2] is not future]


def cut(reports: Sequence[Report], drawn: random.Random) -> Iterator[Report]:
    """Yield the reports in pieces, shuffled."""
    pieces = [
        Report(report.results[start : start + 5], report.flags, report.provenance)
        for report in reports
        for start in range(0, len(report.results), 5)
    ]
    drawn.shuffle(pieces)
    yield from pieces


def crew(answered: Callable[[Portion], Sequence[Report]], workers: int = 1, seed: int = 0) -> Crew:
    made = Crew(workers=workers, seed=seed)
    made._answered = answered
    return made


# --- what trials would show, without a network ---


def drawn(*key: object) -> float:
    return random.Random(repr(key)).random()


def pretended(portion: Portion) -> list[Report]:
    """Return what follows from a trial alone: an image falls to an attack within a stretch of β of its own."""
    by_steering: dict[Steering, list[Result]] = {}
    for trial in portion.trials:
        if trial.attempt.stage == REPLAY:
            assert portion.candidates[trial].shape[1:] == SHAPE
        by_steering.setdefault(trial.steering, []).append(shown(trial))
    return [Report(tuple(own), (), {"torch": "2", "device": "cpu"}) for own in by_steering.values()]


def shown(trial: Trial) -> Result:
    beta, image, attempt = trial.steering.beta, trial.image, trial.attempt
    if attempt.stage == CLEAN:
        label = image % 10
        others = sorted((k for k in range(10) if k != label), key=lambda k: drawn("class", image, k))
        correct = drawn("correct", image) < 0.9
        return Result(
            trial, Answer(float(correct), drawn("margin", image, beta), tuple(others[:RANKS])), Cost(1, 0, 0.25)
        )
    if attempt.stage == INSPECT:
        return Result(trial, Answer(1.0), Cost(3, 1, 0.5))
    if attempt.stage == REPLAY:
        return Result(trial, Answer(float(drawn("replay", trial) < 0.9)), Cost(1, 0, 0.25))
    centre = drawn("centre", image, *attempt)
    fooled = abs(beta - centre) < 0.12 if attempt.stage != "square" else drawn("square", image) < 0.2
    steps = int(1 + 50 * drawn("steps", image, beta, *attempt))
    return Result(trial, Answer(float(not fooled)), Cost(steps, steps, 0.5), image_of(trial) if fooled else None)


def image_of(trial: Trial) -> torch.Tensor:
    return torch.full(SHAPE, drawn("pixels", *trial))


# --- runs ---


BETAS = (0.9, 0.7, 0.5)


def model_run(
    threat: Threat,
    n: int = 12,
    betas: Sequence[float] = BETAS,
    top: int | None = None,
    methods: Sequence[str] = (),
    **changes: Any,
) -> ModelRun:
    digests = {image: f"digest of {image}" for image in range(n)}
    own = Task(**(vars(task(threat)) | changes))
    sets = [np.arange(0, n, 2), np.arange(1, n, 2)]
    search = GuidedSearch(threat, grid(betas, [0.5], "all", methods=methods), digests, sets, top=top)
    return ModelRun(own, search, digests, SHAPE)


def search_of(run: ModelRun) -> GuidedSearch:
    assert isinstance(run.course, GuidedSearch)
    return run.course


def told(run: ModelRun, seconds: bool = True) -> dict[Steering, Any]:
    """Return all that a board says of a run."""
    search = search_of(run)
    return {
        steering: (
            search.finished(steering),
            search.robust(steering).tolist(),
            {stage: outcomes.written(values) for stage, values in search.stages(steering).items()},
            None if (own := search.own(steering)) is None else own.tolist(),
            run.tallies[steering].cost if seconds else run.tallies[steering].cost[:2],
        )
        for steering in search.steerings
    }


@dataclass
class Heard(NullListener):
    """Failures, as a listener hears of them."""

    failures: list[str] = field(default_factory=list)

    def failed(self, label: str, error: ModelError) -> None:
        self.failures.append(label)


@contextmanager
def running(folder: Path, workers: Crew) -> Iterator[tuple[Scheduler, Heard]]:
    heard = Heard()
    with Ledger(folder) as ledger, workers:
        yield Scheduler(workers, ledger, heard), heard


def follow(folder: Path, run: ModelRun, workers: int = 2, seed: int = 0) -> list[Trial]:
    """Follow a course to its end, and return the trials that were computed."""
    own = crew(pretended, workers, seed)
    with running(folder, own) as (made, _):
        made.run([run])
    assert not made.failures
    assert max(Counter(own.computed).values(), default=1) == 1, "a trial was computed twice"
    return own.computed


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions are cut for a few trials, too."""
    monkeypatch.setattr(scheduler, "FEWEST", 4)
    monkeypatch.setattr(scheduler, "MOST", 40)


# --- any crew ---


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("top", [None, 1])
@pytest.mark.parametrize(("workers", "seed"), [(1, 1), (2, 2), (5, 3), (5, 4)])
def test_neither_the_crew_nor_the_order_of_delivery_changes_anything(
    tmp_path: Path, top: int | None, workers: int, seed: int
) -> None:
    alone, together = (model_run(Linf(eps=0.1), top=top) for _ in range(2))
    assert set(follow(tmp_path / "alone", alone, 1)) == set(follow(tmp_path / "together", together, workers, seed))
    assert told(alone) == told(together)


@pytest.mark.usefixtures("here", "small")
def test_the_bytes_of_a_board_are_those_of_one_worker_and_of_a_full_ledger() -> None:
    from harness.engine.evaluate import evaluate

    def computed(portion: Portion) -> list[Report]:
        return [report for reports in evaluate(portion) for report in reports]

    def refused(portion: Portion) -> list[Report]:
        raise AssertionError(f"computed although it is known: {portion.stage}")

    def board(runs: str, own: Crew) -> tuple[str, str]:
        benchmark = parse_benchmark(mapping(name="tiny")).model_copy(update={"executor": own})
        entries = pipeline.entries(benchmark, runs=runs)
        return csv_file.to_csv(ranking.board(entries)), outcomes.table(entries).to_csv()

    first, marks = board("one", crew(computed, 1))
    assert ",failed" not in first
    assert board("one", crew(refused, 3)) == (first, marks)
    other, other_marks = board("five", crew(computed, 5, 7))
    assert [line.rpartition(",")[0] for line in first.splitlines()] == [
        line.rpartition(",")[0] for line in other.splitlines()
    ]
    assert marks == other_marks


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("top", [None, 1])
def test_a_full_ledger_answers_everything_costs_included(tmp_path: Path, top: int | None) -> None:
    first, again = (model_run(Linf(eps=0.1), top=top) for _ in range(2))
    assert follow(tmp_path, first)
    assert follow(tmp_path, again) == []
    assert told(first) == told(again)


@pytest.mark.usefixtures("small")
def test_what_another_search_has_left_in_the_ledger_changes_nothing(tmp_path: Path) -> None:
    alone, after = (model_run(Linf(eps=0.1), top=1) for _ in range(2))
    follow(tmp_path / "alone", alone)
    follow(tmp_path / "full", model_run(Linf(eps=0.1)))
    follow(tmp_path / "full", after)
    assert told(alone) == told(after)


# --- only what is missing ---


def attacks(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.attempt.stage not in (INSPECT, REPLAY)]


def test_more_images_compute_only_their_own(tmp_path: Path) -> None:
    follow(tmp_path, model_run(Linf(eps=0.1), n=10))
    grown, whole = model_run(Linf(eps=0.1), n=20), model_run(Linf(eps=0.1), n=20)
    assert {trial.image for trial in attacks(follow(tmp_path, grown))} == set(range(10, 20))
    follow(tmp_path / "whole", whole)
    assert told(grown) == told(whole)


def test_another_beta_computes_only_its_own(tmp_path: Path) -> None:
    follow(tmp_path, model_run(Linf(eps=0.1)))
    grown, whole = (model_run(Linf(eps=0.1), betas=(*BETAS, 0.6)) for _ in range(2))
    assert {trial.steering.beta for trial in attacks(follow(tmp_path, grown))} == {0.6}
    follow(tmp_path / "whole", whole)
    assert told(grown) == told(whole)


@pytest.mark.parametrize("changes", [{"batch_size": 3}, {"batch_size": 64}, {"offline": True}, {"compile": "always"}])
def test_a_matter_of_speed_computes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    follow(tmp_path, model_run(Linf(eps=0.1)))
    assert follow(tmp_path, model_run(Linf(eps=0.1), **changes)) == []


def test_the_standard_attack_after_a_part_of_it_computes_the_rest(tmp_path: Path) -> None:
    part = Linf(eps=0.1, attack={"stages": ["apgd-ce"]})
    follow(tmp_path, model_run(part))
    grown, whole = model_run(Linf(eps=0.1)), model_run(Linf(eps=0.1))
    assert {trial.attempt.stage for trial in attacks(follow(tmp_path, grown))} == {"apgd-t", "fab-t", "square"}
    follow(tmp_path / "whole", whole)
    assert told(grown) == told(whole)


def test_another_budget_of_an_attack_is_another_attack(tmp_path: Path) -> None:
    follow(tmp_path, model_run(Linf(eps=0.1, attack={"stages": ["apgd-ce"]})))
    stages = {
        trial.attempt.stage
        for trial in follow(tmp_path, model_run(Linf(eps=0.1, attack={"stages": ["apgd-ce"], "iterations": 99})))
    }
    assert "apgd-ce" in stages
    assert CLEAN not in stages


# --- the winners ---


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("n", [12, 30])
def test_best_first_finishes_the_winners_of_the_full_grid_with_equal_rows(tmp_path: Path, n: int) -> None:
    betas = tuple(k / 10 for k in range(10))
    full, best = model_run(Linf(eps=0.1), n, betas), model_run(Linf(eps=0.1), n, betas, top=1)
    follow(tmp_path / "full", full)
    follow(tmp_path / "best", best)
    searches = search_of(full), search_of(best)
    assert not all(searches[1].finished(steering) for steering in searches[1].steerings)
    for where in [np.arange(n), *searches[0].sets]:
        ranked = [max(search.steerings, key=lambda one: search.robust(one)[where].mean()) for search in searches]
        assert searches[1].robust(ranked[1])[where].mean() == searches[0].robust(ranked[0])[where].mean()
    for steering in searches[0].steerings:
        bound, robust = searches[1].robust(steering), searches[0].robust(steering)
        assert (bound >= robust).all()
        if searches[1].finished(steering):
            assert bound.tolist() == robust.tolist()
    winner = max(searches[0].steerings, key=lambda one: searches[0].robust(one).mean())
    assert any(
        searches[1].finished(one) and searches[0].robust(one).mean() == searches[0].robust(winner).mean()
        for one in searches[1].steerings
    )


# --- failures ---


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("stage", [CLEAN, "apgd-t", INSPECT])
@pytest.mark.parametrize("error", [ModelError("NaN logits"), RuntimeError("out of memory")])
def test_a_portion_that_fails_fails_its_model_alone(tmp_path: Path, stage: str, error: Exception) -> None:
    def failing(portion: Portion) -> list[Report]:
        if portion.task.label == "bad" and portion.stage == stage:
            raise error
        return pretended(portion)

    good, bad, last = (model_run(Linf(eps=0.1), label=label, weights_sha256=label) for label in ("good", "bad", "last"))
    with running(tmp_path / "together", crew(failing, 3, 5)) as (made, heard):
        made.run([good, bad, last])
    assert heard.failures == ["bad"]
    assert made.failures.keys() == {"bad"}
    assert str(error) in str(made.failures["bad"])
    for run in (good, last):
        alone = model_run(Linf(eps=0.1), label=run.task.label, weights_sha256=run.task.label)
        follow(tmp_path / run.task.label, alone)
        assert told(run) == told(alone)
        assert all(search_of(run).finished(steering) for steering in search_of(run).steerings)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("stage", [CLEAN, "apgd-t", INSPECT])
@pytest.mark.parametrize(("workers", "seed"), [(1, 1), (5, 3), (5, 4)])
def test_a_method_that_fails_fails_alone_whenever_it_does(tmp_path: Path, stage: str, workers: int, seed: int) -> None:
    """The others are scored, and cost, what they would without it."""

    def failing(portion: Portion) -> list[Report]:
        if portion.stage == stage and any(trial.steering.method == "lora-2" for trial in portion.trials):
            raise MethodError("no such layer", "lora-2")
        return pretended(portion)

    run, alone = (model_run(Linf(eps=0.1), methods=own) for own in (("lora-1", "lora-2"), ("lora-1",)))
    with running(tmp_path / "run", crew(failing, workers, seed)) as (made, heard):
        made.run([run])
    assert heard.failures == [f"{run.task.label} lora-2"]
    assert not made.failures
    assert {method: str(error) for method, error in run.lost.items()} == {"lora-2": "no such layer"}
    follow(tmp_path / "alone", alone)
    assert told(run) == told(alone)


def test_a_ledger_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    def full() -> None:
        with running(tmp_path, crew(pretended, 2)) as (made, _):
            (pages,) = made.ledger._connection.execute("PRAGMA page_count").fetchone()
            made.ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
            made.run([model_run(Linf(eps=0.1), n=500)])

    with pytest.raises(LedgerError, match="disk is full"):
        full()


# --- portions ---


@given(
    st.lists(
        st.tuples(st.sampled_from([CLEAN, "apgd-ce", "square", *INDIVISIBLE]), st.integers(0, 6), st.integers(0, 200)),
        unique=True,
        max_size=400,
    ),
    st.integers(1, 9),
)
def test_portions_have_each_trial_once_and_what_is_indivisible_together(
    drawn: list[tuple[str, int, int]], workers: int
) -> None:
    trials = [Trial(Steering(beta / 10), image, Attempt(stage)) for stage, beta, image in drawn]
    own = Task("m", BENCHMARK.models[0], BENCHMARK.dataset, BENCHMARK.threat, 0, "cpu", "ab")
    found = list(portions(own, trials, workers))
    assert Counter(trial for portion in found for trial in portion.trials) == Counter(trials)
    for portion in found:
        assert portion.trials
        assert {trial.attempt.stage for trial in portion.trials} == {portion.stage}
    by_stage = Counter(portion.stage for portion in found)
    assert max(by_stage.values(), default=0) <= workers
    together = Counter(
        (portion.stage, steering)
        for portion in found
        if portion.stage in INDIVISIBLE
        for steering in {trial.steering for trial in portion.trials}
    )
    assert max(together.values(), default=1) == 1
