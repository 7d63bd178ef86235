"""The workers on a Ray cluster: long-lived actors, each of which loads a model once."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from harness.api.work import Cell, Outcome
from harness.errors import ModelError
from harness.executors.dispatch import Dispatcher, Work, computed, last_line
from harness.executors.local import ATTEMPTS, ENVIRONMENT

TICK = 0.05
"""Seconds until a cell that was submitted while others are awaited is noticed."""


class Worker:
    """What runs in a process of the cluster.

    Args:
        folder: in which the run was started.
    """

    def __init__(self, folder: str) -> None:
        os.environ.update(ENVIRONMENT)
        if Path(folder).is_dir():
            os.chdir(folder)
        import harness.engine.evaluate  # noqa: F401  # what cannot be imported is told before a cell is given here

    def ready(self) -> None:
        """Answer."""

    def compute(self, cell: Cell) -> Outcome | Exception:
        """See `computed`."""
        return computed(cell)


class Workers:
    """All workers of a run, by what is awaited of each.

    Args:
        size: at most so many; no more are started than there are cells waiting.
        gpus: of each; 0 is a CPU each.
    """

    def __init__(self, size: int, gpus: float) -> None:
        self._size = size
        self._hire = ray.remote(Worker).options(num_cpus=0 if gpus else 1, num_gpus=gpus).remote
        self._idle: list[Any] = []
        self._asked: dict[Any, Any] = {}  # have not answered yet whether they are there
        self._busy: dict[Any, tuple[Any, Work]] = {}
        self._silent: list[str] = []  # why those that were asked last did not answer

    def step(self, dispatcher: Dispatcher) -> None:
        """Give out the cells that wait, and hear from one worker."""
        waiting = dispatcher.waiting
        while self._idle and waiting:
            worker, work = self._idle.pop(), waiting.popleft()
            self._busy[worker.compute.remote(work.cell)] = (worker, work)
        if len(self._silent) < ATTEMPTS:
            room = self._size - len(self._idle) - len(self._asked) - len(self._busy)
            for _ in range(min(room, len(waiting) - len(self._asked))):
                self._ask(self._hire(os.getcwd()))
        awaited = [*self._busy, *self._asked]
        if awaited:
            for answer in ray.wait(awaited, timeout=TICK)[0]:
                self._hear(answer, dispatcher)
        elif not self._idle and len(self._silent) >= ATTEMPTS:
            raise ModelError(
                f"no worker could be started on the Ray cluster, {ATTEMPTS} times: {self._silent[-1]}; "
                "install the same version of ct-harness on every node"
            )
        else:
            time.sleep(TICK)

    def dismiss(self) -> None:
        """End all of them, whatever they are doing."""
        for worker in [*self._idle, *self._asked.values(), *(worker for worker, _ in self._busy.values())]:
            ray.kill(worker)

    def _ask(self, worker: Any) -> None:
        self._asked[worker.ready.remote()] = worker

    def _hear(self, answer: Any, dispatcher: Dispatcher) -> None:
        worker, work = self._busy.pop(answer) if answer in self._busy else (self._asked.pop(answer), None)
        try:
            result = ray.get(answer)
        except RayError as error:
            ray.kill(worker)
            self._lost(work, last_line(str(error)), dispatcher)
            return
        self._silent.clear()
        self._idle.append(worker)
        if work is not None:
            work.settle(result)

    def _lost(self, work: Work | None, reason: str, dispatcher: Dispatcher) -> None:
        if work is None:
            self._silent.append(reason)
        else:
            dispatcher.again(work, reason, "lower batch_size")
        while self._idle:  # whoever shared its node may be gone as well: asked before a cell is given to them
            self._ask(self._idle.pop())
