"""Workers on a Ray cluster: long-lived actors, each of which loads a model once."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from harness.api.work import Cell, Outcome
from harness.errors import ModelError
from harness.executors.dispatch import Dispatcher, Work, compute_in_worker, last_line
from harness.executors.local import ATTEMPTS, ENVIRONMENT

TICK = 0.05
"""Seconds until a newly submitted cell is noticed while others are awaited."""


class Worker:
    """A process on the cluster that computes cells.

    Args:
        directory: working directory of the run, entered if the node has one of this path.
    """

    def __init__(self, directory: str) -> None:
        os.environ.update(ENVIRONMENT)
        if Path(directory).is_dir():
            os.chdir(directory)
        import harness.engine.evaluate  # noqa: F401  # a failing import is then reported before a cell is sent

    def ready(self) -> None:
        """Answer, to show that the worker is alive."""

    def compute(self, cell: Cell) -> Outcome | Exception:
        """See `compute_in_worker`."""
        return compute_in_worker(cell)


class Workers:
    """All workers of a run: idle, busy, or not known to be alive.

    Args:
        size: largest number of workers; no more are started than cells are waiting.
        gpus: number of GPUs of each worker; 0 means one CPU each.
    """

    def __init__(self, size: int, gpus: float) -> None:
        self._size = size
        self._start = ray.remote(Worker).options(num_cpus=0 if gpus else 1, num_gpus=gpus).remote
        self._idle: list[Any] = []
        self._pinged: dict[Any, Any] = {}  # the workers that have not answered `Worker.ready` yet, by their answer
        self._busy: dict[Any, tuple[Any, Work]] = {}  # the workers and their cells, by their answer
        self._failed_pings: list[str] = []  # reasons, since a worker last answered

    def step(self, dispatcher: Dispatcher) -> None:
        """Send waiting cells to idle workers, start more workers if there is room, and collect an answer."""
        waiting = dispatcher.waiting
        while self._idle and waiting:
            worker, work = self._idle.pop(), waiting.popleft()
            self._busy[worker.compute.remote(work.cell)] = (worker, work)
        if len(self._failed_pings) < ATTEMPTS:
            room = self._size - len(self._idle) - len(self._pinged) - len(self._busy)
            for _ in range(min(room, len(waiting) - len(self._pinged))):
                self._ping(self._start(os.getcwd()))
        awaited = [*self._busy, *self._pinged]
        if awaited:
            for answer in ray.wait(awaited, timeout=TICK)[0]:
                self._collect(answer, dispatcher)
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

    def _ping(self, worker: Any) -> None:
        self._pinged[worker.ready.remote()] = worker

    def _collect(self, answer: Any, dispatcher: Dispatcher) -> None:
        """Take a worker's answer, or note that the worker is lost."""
        worker, work = self._busy.pop(answer) if answer in self._busy else (self._pinged.pop(answer), None)
        try:
            result = ray.get(answer)
        except RayError as error:
            ray.kill(worker)
            self._handle_loss(work, last_line(str(error)), dispatcher)
            return
        self._failed_pings.clear()
        self._idle.append(worker)
        if work is not None:
            work.settle(result)

    def _handle_loss(self, work: Work | None, reason: str, dispatcher: Dispatcher) -> None:
        if work is None:
            self._failed_pings.append(reason)
        else:
            dispatcher.retry(work, reason, "lower batch_size")
        while self._idle:  # workers on the same node may be lost too: ping them before they are sent a cell
            self._ping(self._idle.pop())
