"""Worker processes on the cores or GPUs of this machine, with one torch thread each."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from harness.api.executor import Executor
from harness.api.work import Cell, Outcome
from harness.errors import ModelError

ATTEMPTS = 3
"""Number of workers that may be lost with a cell before the cell is held responsible."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""Environment of a worker, set before it imports torch: one thread, and GPU sums in a fixed order."""


warnings.filterwarnings("ignore", "A worker was restarted while some jobs were given to the executor")
"""loky takes a growing worker for a leak. A worker that trains a network grows, and is replaced at no cost."""


class Local(Executor):
    """Worker processes on this machine, one torch thread each.

    Each worker is a pool of one process, so one that dies takes only its own cell with it. Each has one thread, since
    two threads in each of two busy processes run many times slower.

    Args:
        workers: number of worker processes; "auto" starts one per GPU, or one per core without GPUs.
    """

    kind = "local"

    workers: Annotated[int, Field(strict=True, gt=0)] | Literal["auto"] = "auto"

    _idle: deque[int] = PrivateAttr()
    _pools: dict[int, Any] = PrivateAttr()
    _lock: threading.Lock = PrivateAttr()

    @property
    def slots(self) -> int:
        """Number of workers, as each computes one cell at a time."""
        return self.workers if isinstance(self.workers, int) else _default_workers()

    def __enter__(self) -> Local:
        self._idle, self._pools, self._lock = deque(range(self.slots)), {}, threading.Lock()
        return self

    def __exit__(self, *exception: object) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, kill_workers=True)
        self._pools.clear()

    def submit(self, cell: Cell) -> Future[Outcome]:
        """Submit ``cell`` to an idle worker; there is one while at most `slots` cells are in flight."""
        outcome: Future[Outcome] = Future()
        self._start(cell, outcome, attempt=1)
        return outcome

    def _start(self, cell: Cell, outcome: Future[Outcome], attempt: int) -> None:
        """Compute ``cell`` in an idle worker, and again in another one when that worker dies."""
        from harness.engine.evaluate import evaluate

        with self._lock:
            worker = self._idle.popleft()

        def finish(future: Future[Outcome]) -> None:
            error = future.exception()
            died = isinstance(error, BrokenProcessPool)
            with self._lock:
                if died:
                    self._pools.pop(worker, None)
                self._idle.append(worker)
            if not died:
                _copy_result(future, outcome)
            elif attempt < ATTEMPTS:
                self._start(cell, outcome, attempt + 1)
            else:
                outcome.set_exception(ModelError(
                    f"its worker died {ATTEMPTS} times on stage {cell.stage} of {len(cell.surviving)} images "
                    f"(out of memory?); lower batch_size. {error}"
                ))  # fmt: skip

        try:
            future = self._submit_to(worker, evaluate, cell)
        except Exception as error:  # also in a callback, where nobody would hear of it
            with self._lock:
                self._idle.append(worker)
            outcome.set_exception(error)
        else:
            future.add_done_callback(finish)

    def _submit_to(self, worker: int, function: Callable[[Cell], Outcome], cell: Cell) -> Future[Outcome]:
        """Submit ``cell`` to ``worker``, which is first replaced if it died while idle."""
        for _ in range(ATTEMPTS):
            if worker not in self._pools:
                self._pools[worker] = _pool(worker, cell.task.device)
            try:
                future: Future[Outcome] = self._pools[worker].submit(function, cell)
            except BrokenProcessPool:
                del self._pools[worker]
            else:
                return future
        raise ModelError(
            f"no worker process could be started in {ATTEMPTS} attempts; free some memory, or lower executor.workers"
        )


def _copy_result(source: Future[Outcome], target: Future[Outcome]) -> None:
    error = source.exception()
    if error is not None:
        target.set_exception(error)
    else:
        target.set_result(source.result())


def _pool(worker: int, device: str) -> Any:
    """Start a pool of one process that does not import the caller's script, so no ``__main__`` guard is needed."""
    from loky import ProcessPoolExecutor

    environment = dict(ENVIRONMENT)
    if device == "cuda":  # any GPU; "cuda:1" is that one, for all workers
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(_gpus())))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[worker % _gpus()]
    return ProcessPoolExecutor(
        max_workers=1, env=environment, timeout=None, initializer=_exit_with, initargs=(os.getpid(),)
    )


def _exit_with(parent: int) -> None:
    """Make a worker exit when the process ``parent`` does, even if that is killed and cannot shut its workers down."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _default_workers() -> int:
    """Return the number of GPUs, or of cores without any."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _gpus() or cores


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
