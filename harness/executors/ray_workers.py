"""Workers on a Ray cluster: long-lived actors, each of which loads a model once."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from harness.api.work import Portion
from harness.errors import DeviceLost, ModelError
from harness.executors.dispatch import Dispatcher, last_line
from harness.executors.patience import REMEDY, TimeLimit, longest_silence
from harness.executors.placement import environment
from harness.executors.submission import ATTEMPTS, Submission
from harness.executors.worker import Answer, answers
from harness.util.process import packed
from harness.util.threads import available_cores

TICK = 0.05
"""Seconds until a newly submitted portion is noticed while others are awaited."""


class Worker:
    """A process on the cluster that computes portions.

    Args:
        directory: working directory of the run, entered if the node has one of this path.
    """

    def __init__(self, directory: str) -> None:
        os.environ.update(environment(bool(ray.get_gpu_ids()), available_cores(), os.environ))
        if Path(directory).is_dir():
            os.chdir(directory)
        import harness.engine.evaluate  # noqa: F401  # a failing import is then reported before a portion is sent

        self._answers: Iterator[Answer] = iter(())

    def ready(self) -> None:
        """Answer, to show that the worker is alive."""

    def begin(self, portion: Portion) -> bytes:
        """Begin a portion, and give up the one before it; return the first answer, pickled."""
        self._answers = answers(portion)
        return self.more()

    def more(self) -> bytes:
        """Return the next answer, pickled."""
        return packed(next(self._answers))


class Workers:
    """All workers of a run: idle, busy, or not known to be alive.

    Args:
        size: largest number of workers; no more are started than portions are waiting.
        gpus: number of GPUs of each worker; 0 means one CPU each.
        time_limit: see `harness.executors.local.Local`.
    """

    def __init__(self, size: int, gpus: float, time_limit: TimeLimit) -> None:
        self._size, self._time_limit = size, time_limit
        self._start = ray.remote(Worker).options(num_cpus=0 if gpus else 1, num_gpus=gpus).remote
        self._idle: list[Any] = []
        self._models: dict[Any, str] = {}  # the label that each worker has last computed for
        self._pinged: dict[Any, Any] = {}  # the workers that have not answered `Worker.ready` yet, by their answer
        self._busy: dict[Any, tuple[Any, Submission]] = {}  # the workers and what they compute, by their answer
        self._computed: dict[Any, set[str]] = {}  # the labels that each worker has computed for
        self._asked: dict[Any, float] = {}  # when each of these answers was asked for
        self._failed_pings: list[str] = []  # reasons, since a worker last answered

    def step(self, dispatcher: Dispatcher) -> None:
        """Send waiting portions to idle workers, start more workers if there is room, and collect answers."""
        waiting = dispatcher.waiting
        while self._idle and waiting:
            submission = waiting.popleft()
            if submission.left is not None and not submission.future.done():
                worker = self._idle_one(submission.left.task.label)
                self._ask(worker.begin.remote(submission.left), worker, submission)
        if len(self._failed_pings) < ATTEMPTS:
            room = self._size - len(self._idle) - len(self._pinged) - len(self._busy)
            for _ in range(min(room, len(waiting) - len(self._pinged))):
                self._ping(self._start(os.getcwd()))
        awaited = [*self._busy, *self._pinged]
        if awaited:
            for answer in ray.wait(awaited, timeout=TICK)[0]:
                self._collect(answer, dispatcher)
            self._give_up_silent()
        elif not self._idle and len(self._failed_pings) >= ATTEMPTS:
            raise ModelError(
                f"no worker could be started on the Ray cluster, {ATTEMPTS} times: {self._failed_pings[-1]}; "
                "install the same version of ct-harness on every node"
            )
        else:
            time.sleep(TICK)

    def kill(self) -> None:
        """Kill all workers, busy ones too."""
        for worker in [*self._idle, *self._pinged.values(), *(worker for worker, _ in self._busy.values())]:
            ray.kill(worker)

    def _idle_one(self, label: str) -> Any:
        """Take an idle worker for a model: one that has it loaded, where there is one."""
        worker = next((one for one in self._idle if self._models.get(one) == label), self._idle[-1])
        self._idle.remove(worker)
        self._models[worker] = label
        self._computed.setdefault(worker, set()).add(label)
        return worker

    def _ping(self, worker: Any) -> None:
        self._pinged[worker.ready.remote()] = worker

    def _ask(self, answer: Any, worker: Any, submission: Submission) -> None:
        self._busy[answer], self._asked[answer] = (worker, submission), time.monotonic()

    def _give_up_silent(self) -> None:
        """Kill the workers that have been silent for too long; what they compute has failed."""
        for answer, (worker, submission) in list(self._busy.items()):
            if submission.left is None:  # all is here but the word that it is all
                continue
            limit = longest_silence(submission.left, self._time_limit)
            if time.monotonic() - self._asked[answer] > limit:
                del self._busy[answer], self._asked[answer]
                self._kill(worker)
                submission.fail(ModelError(f"stage {submission.left.stage}: no answer for {limit:.0f} s; {REMEDY}"))

    def _collect(self, answer: Any, dispatcher: Dispatcher) -> None:
        """Take a worker's answer, or note that the worker is lost."""
        worker, submission = self._busy.pop(answer) if answer in self._busy else (self._pinged.pop(answer), None)
        self._asked.pop(answer, None)
        try:
            result = ray.get(answer)
        except RayError as error:
            self._kill(worker)
            self._handle_loss(submission, last_line(str(error)), dispatcher)
            return
        self._failed_pings.clear()
        if submission is None:
            self._idle.append(worker)
        else:
            self._take(pickle.loads(result), worker, submission, dispatcher)

    def _take(self, told: Answer, worker: Any, submission: Submission, dispatcher: Dispatcher) -> None:
        """Deliver an answer, and ask for the next one unless it was the last."""
        if isinstance(told, DeviceLost):
            self._kill(worker)
            dispatcher.retry(submission, str(told), "")
            return
        if isinstance(told, Exception) and len(self._computed[worker]) > 1:  # see `harness.executors.local.Worker`
            self._kill(worker)
            dispatcher.retry(submission, f"It had computed another model before: {told}", "")
            return
        submission.accept(told)
        if submission.future.done():
            self._idle.append(worker)
        else:
            self._ask(worker.more.remote(), worker, submission)

    def _kill(self, worker: Any) -> None:
        """Kill a worker that is lost; another one is started if there is work for it."""
        self._models.pop(worker, None)
        self._computed.pop(worker, None)
        ray.kill(worker)

    def _handle_loss(self, submission: Submission | None, reason: str, dispatcher: Dispatcher) -> None:
        if submission is None:
            self._failed_pings.append(reason)
        else:
            dispatcher.retry(submission, reason, "lower batch_size")
        while self._idle:  # workers on the same node may be lost too: ping them before they are sent a portion
            self._ping(self._idle.pop())
