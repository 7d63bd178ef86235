"""Dispatch of cells to other machines: sent, awaited, and sent again when their worker is lost."""

from __future__ import annotations

import os
import pickle
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, ClassVar

from pydantic import Field, PrivateAttr, model_validator

from harness.api.executor import Executor
from harness.api.work import Cell, Outcome
from harness.errors import HarnessError, ModelError, SpecError
from harness.executors.local import ATTEMPTS, ENVIRONMENT


def compute_in_worker(cell: Cell) -> Outcome | Exception:
    """Compute ``cell`` in a worker; return its outcome, or the exception as a value so that its type travels."""
    os.environ.update(ENVIRONMENT)
    from harness.engine.evaluate import evaluate

    try:
        return evaluate(cell)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # a library's error that cannot be pickled: its text can
            return ModelError(f"stage {cell.stage}: {type(error).__name__}: {error}")
        return error


@dataclass(eq=False)
class Work:
    """A submitted cell.

    Args:
        cell: the cell to compute.
        future: future of its outcome.
        workers_lost: number of workers that were lost while they computed it.
    """

    cell: Cell
    future: Future[Outcome] = field(default_factory=Future)
    workers_lost: int = 0

    def settle(self, result: Outcome | Exception) -> None:
        """Resolve the future with an outcome or an exception."""
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class Dispatcher:
    """A thread that takes step after step until it is stopped, and the queue of cells that wait to be sent.

    Args:
        step: sends what is `waiting` and settles what has come back, in a fraction of a second. It runs in the thread
            only; an exception ends the thread and fails every unresolved future.
        close: releases the workers; the thread calls it last.
    """

    def __init__(self, step: Callable[[Dispatcher], None], close: Callable[[], None]) -> None:
        self.waiting: deque[Work] = deque()
        self._step, self._close = step, close
        self._unresolved: set[Future[Outcome]] = set()
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ct-harness dispatcher", daemon=True)
        self._thread.start()

    def submit(self, cell: Cell) -> Future[Outcome]:
        """Queue ``cell`` and return the future of its outcome."""
        work = Work(cell)
        with self._lock:
            if self._failure is not None:
                work.settle(self._failure)
            else:
                self._unresolved.add(work.future)
                self.waiting.append(work)
        work.future.add_done_callback(self._unresolved.discard)
        return work.future

    def retry(self, work: Work, reason: str, remedy: str) -> None:
        """Queue a cell again after its worker was lost, or fail it if too many workers were lost with it.

        Args:
            work: the cell.
            reason: what happened to the worker, for the error message.
            remedy: what to do about it, for the error message.
        """
        work.workers_lost += 1
        if work.workers_lost < ATTEMPTS:
            self.waiting.appendleft(work)
            return
        cell = work.cell
        work.settle(ModelError(
            f"its worker was lost {ATTEMPTS} times on stage {cell.stage} of {len(cell.surviving)} images "
            f"(out of memory?); {remedy}. {reason}"
        ))  # fmt: skip

    def stop(self) -> None:
        """Release the workers and cancel the unresolved futures."""
        self._stopped.set()
        self._thread.join()
        for future in list(self._unresolved):
            future.cancel()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._step(self)
        except Exception as error:  # whatever the cluster's library raises: nobody else would hear of it
            failure = error if isinstance(error, HarnessError) else ModelError(f"{type(error).__name__}: {error}")
            with self._lock:
                self._failure = failure
            for future in list(self._unresolved):
                future.set_exception(failure)
        finally:
            self._close()


class ClusterExecutor(Executor):
    """Workers on other machines, through a library from an optional extra; entering it starts its dispatcher.

    Args:
        gpus: number of GPUs of each worker.
    """

    package: ClassVar[str]
    """Import name of the library; the extra is named after the kind."""

    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0

    _dispatcher: Dispatcher = PrivateAttr()

    @model_validator(mode="after")
    def _installed(self) -> ClusterExecutor:
        if find_spec(self.package) is None:
            raise SpecError(
                f"executor: kind {self.kind} needs the package {self.package}, which is not installed; "
                f"pip install 'ct-harness[{self.kind}]'"
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._dispatcher.stop()

    def submit(self, cell: Cell) -> Future[Outcome]:
        """See `Executor.submit`.

        Raises:
            SpecError: the benchmark wants a GPU and the workers have none, or the other way round.
        """
        expected = "cuda" if self.gpus else "cpu"
        if cell.task.device != expected:
            remedy = "executor.gpus=0" if self.gpus else "executor.gpus=1 and device=cuda"
            raise SpecError(
                f"executor.gpus: workers with {self.gpus:g} GPUs each need device: {expected}, found device: "
                f"{cell.task.device}; set device={expected}, or {remedy}"
            )
        return self._dispatcher.submit(cell)


def last_line(text: str) -> str:
    """Return the last non-empty line of a traceback or log, which says what went wrong; empty if there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
