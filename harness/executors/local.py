"""The cores, or the GPUs, of this machine: one process each, one torch thread a process."""

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
"""How often a cell is given to a new worker before it is taken for what kills them."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""Of a worker, set before it imports torch: one thread, in its compiler too, and sums on a GPU in one order."""


warnings.filterwarnings("ignore", "A worker was restarted while some jobs were given to the executor")
"""loky calls it a leak when a worker grows; one that trains a network does, and is replaced without a loss."""


class Local(Executor):
    """Worker processes on this machine, one torch thread each.

    Each is a pool of one process, so that one that dies takes only its own cell with it. Two threads in each of two
    busy processes run many times slower than one thread in each: hence one thread.

    Args:
        workers: how many; "auto" is one a GPU where there are any, otherwise one a core.
    """

    kind = "local"

    workers: Annotated[int, Field(strict=True, gt=0)] | Literal["auto"] = "auto"

    _idle: deque[int] = PrivateAttr()
    _pools: dict[int, Any] = PrivateAttr()
    _lock: threading.Lock = PrivateAttr()

    @property
    def slots(self) -> int:
        """One cell a worker."""
        return self.workers if isinstance(self.workers, int) else _devices()

    def __enter__(self) -> Local:
        self._idle, self._pools, self._lock = deque(range(self.slots)), {}, threading.Lock()
        return self

    def __exit__(self, *exception: object) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, kill_workers=True)
        self._pools.clear()

    def submit(self, cell: Cell) -> Future[Outcome]:
        """To an idle worker; there is one as long as no more than `slots` cells are in flight."""
        promise: Future[Outcome] = Future()
        self._start(cell, promise, attempt=1)
        return promise

    def _start(self, cell: Cell, promise: Future[Outcome], attempt: int) -> None:
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
                _settle(promise, future)
            elif attempt < ATTEMPTS:
                self._start(cell, promise, attempt + 1)
            else:
                promise.set_exception(ModelError(
                    f"its worker died {ATTEMPTS} times on stage {cell.stage} of {len(cell.surviving)} images "
                    f"(out of memory?); lower batch_size. {error}"
                ))  # fmt: skip

        try:
            future = self._given(worker, evaluate, cell)
        except Exception as error:  # also in a callback, where nobody would hear of it
            with self._lock:
                self._idle.append(worker)
            promise.set_exception(error)
        else:
            future.add_done_callback(finish)

    def _given(self, worker: int, function: Callable[[Cell], Outcome], cell: Cell) -> Future[Outcome]:
        """The worker's future; a worker that died while it was idle is replaced."""
        for _ in range(ATTEMPTS):
            if worker not in self._pools:
                self._pools[worker] = _pool(worker, cell.task.device)
            try:
                future: Future[Outcome] = self._pools[worker].submit(function, cell)
            except BrokenProcessPool:
                del self._pools[worker]
            else:
                return future
        raise ModelError(f"no worker process could be started, {ATTEMPTS} times; is there memory left?")


def _settle(promise: Future[Outcome], future: Future[Outcome]) -> None:
    error = future.exception()
    if error is not None:
        promise.set_exception(error)
    else:
        promise.set_result(future.result())


def _pool(worker: int, device: str) -> Any:
    """A pool of one process that does not import the caller's script, so no ``__main__`` guard is needed."""
    from loky import ProcessPoolExecutor

    environment = dict(ENVIRONMENT)
    if device == "cuda":  # any; "cuda:1" is that one, for all workers
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(_gpus())))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[worker % _gpus()]
    return ProcessPoolExecutor(
        max_workers=1, env=environment, timeout=None, initializer=_leave_with, initargs=(os.getpid(),)
    )


def _leave_with(parent: int) -> None:
    """In a worker: end when the run does, however it ends; a killed one cannot say goodbye."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _devices() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _gpus() or cores


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
