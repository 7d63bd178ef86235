"""Scheduler: sends the trials that courses ask for to an executor, and their results to the ledger."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Protocol

from harness.api.executor import Executor
from harness.api.records import Steering
from harness.api.trial import INDIVISIBLE, REPLAY, Attempt, Cost, Trial, by_steering
from harness.api.work import Portion, Report, Task
from harness.engine.ledger import Ledger, Stored
from harness.errors import HarnessError, LedgerError, MethodError, ModelError
from harness.scheduling.course import Course
from harness.scheduling.guided import GuidedSearch
from harness.util.batching import grouped
from harness.util.hashing import canonical

FEWEST = 2
"""Trials below which a portion is not split between workers."""
MOST = 8192
"""Trials of a portion, about, at most."""
REPLAYED = 64e6
"""Bytes of adversarial images that travel with a portion of a replay, about, at most."""


class ProgressListener(Protocol):
    """Receives the events of a run, to display its progress."""

    def started(self, workers: int) -> None:
        """Take note that computation starts, on so many workers."""

    def advanced(self, label: str, computed: Sequence[Report], left: float) -> None:
        """Take note of progress.

        Args:
            label: the model.
            computed: results that have come in, and are in the ledger.
            left: passes that are still to come, of all models; an estimate.
        """

    def stale(self, label: str, why: str) -> None:
        """Take note that results of the model ``label`` in the ledger are not used any more; ``why`` is a sentence."""

    def failed(self, label: str, error: ModelError) -> None:
        """Take note that the model ``label`` cannot be scored; the others go on."""


@dataclass
class Tally:
    """Cost of the results of one steering, and the circumstances of their computation.

    Args:
        cost: sum of the costs.
        flags: flags raised meanwhile.
        provenances: versions and devices.
    """

    cost: Cost = field(default_factory=Cost)
    flags: set[str] = field(default_factory=set)
    provenances: list[Mapping[str, str]] = field(default_factory=list)


@dataclass(eq=False)
class ModelRun:
    """The course of one model, and what is known of its trials.

    Args:
        task: everything that the model's trials share.
        course: decides which trials come next.
        digests: hash of each image by its number.
        shape: shape of an image: c, h, w.
        tallies: costs of the trials that the course has asked for, by steering.
        lost: errors of the other methods that have failed, by method.
    """

    task: Task
    course: Course
    digests: Mapping[int, str]
    shape: tuple[int, ...]
    tallies: dict[Steering, Tally] = field(default_factory=dict)
    lost: dict[str, ModelError] = field(default_factory=dict)
    asked: list[Trial] = field(default_factory=list)
    missing: set[Trial] = field(default_factory=set)
    done: bool = False
    _known: dict[Steering, dict[tuple[str, str], Stored]] = field(default_factory=dict)
    _keys: dict[Attempt, str] = field(default_factory=dict)

    def key(self, trial: Trial) -> tuple[str, str]:
        """Return the digest of a trial's image and the key of its attempt, by which the ledger knows it."""
        if trial.attempt not in self._keys:
            self._keys[trial.attempt] = canonical(self.task.attempt_identity(trial.attempt))
        return self.digests[trial.image], self._keys[trial.attempt]

    def known(self, steering: Steering, ledger: Ledger) -> dict[tuple[str, str], Stored]:
        """Return everything that is known of a steering."""
        if steering not in self._known:
            self._known[steering] = ledger.read(self.task.identity(steering))
        return self._known[steering]


Event = tuple[ModelRun, Portion, Sequence[Report] | Future[None]]
"""Results of a portion, or its end."""


@dataclass
class Scheduler:
    """Keeps an executor busy with the trials that courses ask for, and the ledger up to date.

    What a course asks for follows from the answers alone, and it is told a round at a time. So neither the number of
    workers, nor the order in which results come in, nor what the ledger held before changes what it asks for.

    Args:
        executor: computes the trials; its context has been entered.
        ledger: receives every result.
        listener: receives the events.
        failures: errors of the models that have failed, by label.
    """

    executor: Executor
    ledger: Ledger
    listener: ProgressListener
    failures: dict[str, ModelError] = field(default_factory=dict)
    _capacity: int = field(default=1, init=False)

    def run(self, runs: Sequence[ModelRun]) -> None:
        """Follow every course to its end. Each result is in the ledger before its course is told of it."""
        events: SimpleQueue[Event] = SimpleQueue()
        devices = {run.task.device for run in runs}
        self._capacity = max(map(self.executor.capacity, devices), default=1)
        queue = deque(pair for run in runs for pair in self._next_round(run))
        if queue:
            self.listener.started(self._capacity)
        in_flight = 0
        while queue or in_flight:
            while queue and in_flight < self._capacity:
                self._submit(*queue.popleft(), events)
                in_flight += 1
            run, portion, event = events.get()
            restarted = False
            if isinstance(event, Future):
                in_flight -= 1
                restarted = self._check(run, portion, event)
            else:
                self._record(run, event)
                left = sum(other.course.remaining() for other in runs if not other.done)
                self.listener.advanced(run.task.label, event, left)
            if run.done or restarted:
                queue = deque(pair for pair in queue if pair[0] is not run)
            if restarted:
                queue.extendleft(reversed(self._next_round(run)))
            elif not run.done and not run.missing:
                self._tell(run)
                queue.extendleft(reversed(self._next_round(run)))  # a worker goes on with the model it has loaded
        for run in runs:
            if not run.done:
                self._fail(run, ModelError(f"the executor kept the results of {len(run.missing)} trials to itself"))

    def _next_round(self, run: ModelRun) -> list[tuple[ModelRun, Portion]]:
        """Go on with a course as far as the ledger knows the answers, and return what it does not know."""
        while not run.done:
            run.asked = run.course.ask()
            if not run.asked:
                run.done = True
                break
            missing = [trial for trial in run.asked if run.key(trial) not in run.known(trial.steering, self.ledger)]
            if missing:
                run.missing = set(missing)
                most = max(int(REPLAYED // (4 * math.prod(run.shape) * (len(run.tallies) or 1))), 1)
                cut = portions(run.task, missing, self._capacity, most)
                digests = [{trial.image: run.digests[trial.image] for trial in one.trials} for one in cut]
                return [(run, replace(one, digests=own)) for one, own in zip(cut, digests, strict=True)]
            self._tell(run)
        return []

    def _tell(self, run: ModelRun) -> None:
        """Tell a course the answers to what it asked, and add up what they cost."""
        answers, blocks = {}, set()
        for trial in run.asked:
            stored = run.known(trial.steering, self.ledger)[run.key(trial)]
            answers[trial] = stored.answer
            tally = run.tallies.setdefault(trial.steering, Tally())
            tally.cost = tally.cost.plus(stored.cost)
            blocks.add((trial.steering, stored.block))
        for steering, number in blocks:
            block, tally = self.ledger.block(number), run.tallies[steering]
            tally.flags |= set(block.flags)
            if block.provenance not in tally.provenances:
                tally.provenances.append(block.provenance)
        run.course.tell(answers)

    def _submit(self, run: ModelRun, portion: Portion, events: SimpleQueue[Event]) -> None:
        if portion.stage == REPLAY:
            portion = self._with_candidates(run, portion)
        future = self.executor.submit(portion, lambda reports: events.put((run, portion, reports)))
        future.add_done_callback(lambda done: events.put((run, portion, done)))

    def _with_candidates(self, run: ModelRun, portion: Portion) -> Portion:
        """Return a replay with the adversarial images that it shows, read from the ledger."""
        import torch

        assert isinstance(run.course, GuidedSearch)
        candidates = {}
        for trial in portion.trials:
            images = [
                self.ledger.adversarial(run.known(source.steering, self.ledger)[run.key(source)], run.shape)
                for source in run.course.sources[trial]
            ]
            candidates[trial] = torch.stack([torch.from_numpy(image) for image in images])
        return replace(portion, candidates=candidates)

    def _record(self, run: ModelRun, reports: Sequence[Report]) -> None:
        """Write results to the ledger, for good."""
        for report in reports:
            entries = [(*run.key(result.trial), result) for result in report.results]
            identity = run.task.identity(report.steering)
            stored = self.ledger.append(identity, entries, report.flags, report.provenance)
            known = run.known(report.steering, self.ledger)
            for (digest, key, result), one in zip(entries, stored, strict=True):
                known.setdefault((digest, key), one)
                run.missing.discard(result.trial)
        self.ledger.commit()

    def _check(self, run: ModelRun, portion: Portion, future: Future[None]) -> bool:
        """Fail the model, or one method of adapting it, if a portion could not be computed.

        Returns:
            Whether the course starts again, without that method.
        """
        error = future.exception()
        if error is None:
            return False
        if isinstance(error, MethodError) and isinstance(run.course, GuidedSearch):
            return not run.done and self._lose(run, error)
        if isinstance(error, LedgerError) or not isinstance(error, Exception):
            raise error
        if isinstance(error, ModelError):
            self._fail(run, error)
        elif isinstance(error, HarnessError):
            self._fail(run, ModelError(str(error)))
        else:  # whatever a network or an attack raises in the middle of a run
            self._fail(run, ModelError(f"stage {portion.stage}: {type(error).__name__}: {error}"))
        return False

    def _lose(self, run: ModelRun, error: MethodError) -> bool:
        """Start a course again without a method that has failed, and return whether it was still in it.

        What was computed is in the ledger, so that only the trials in flight are computed again, and the course asks
        for what it would ask for had the method never been there.
        """
        if error.method in run.lost:
            return False
        assert isinstance(run.course, GuidedSearch)
        run.course = run.course.without(error.method)
        run.lost[error.method] = error
        run.tallies, run.missing = {}, set()
        self.listener.failed(f"{run.task.label} {error.method}", error)
        return True

    def _fail(self, run: ModelRun, error: ModelError) -> None:
        run.done = True
        if run.task.label not in self.failures:
            self.failures[run.task.label] = error
            self.listener.failed(run.task.label, error)


def portions(task: Task, trials: Sequence[Trial], workers: int, replayed: int = MOST) -> list[Portion]:
    """Cut trials into portions for so many workers, stage by stage.

    A portion has the trials of some steerings, or, where there are fewer steerings than workers, every so many of them.

    Args:
        task: everything that the trials share.
        trials: the trials.
        workers: number of workers.
        replayed: about the most trials of a portion of a replay, whose images travel with it.
    """
    found = list[Portion]()
    for stage, own in grouped(trials, lambda trial: trial.attempt.stage).items():
        most = min(MOST, replayed) if stage == REPLAY else MOST
        parts = max(min(workers, len(own) // FEWEST), -(-len(own) // most))
        groups = list(grouped(own, by_steering).values())
        if stage in INDIVISIBLE or len(groups) >= 2 * parts:
            cut = [[trial for group in groups[start::parts] for trial in group] for start in range(parts)]
        else:
            cut = [own[start::parts] for start in range(parts)]
        found += [Portion(task, tuple(part)) for part in cut if part]
    return found
