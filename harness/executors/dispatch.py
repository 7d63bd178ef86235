"""Cells that are computed on other machines: given out, waited for, and given out again when their worker is lost."""

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


def computed(cell: Cell) -> Outcome | Exception:
    """Compute ``cell`` in a worker; return the outcome, or the exception as a value so that its type travels."""
    os.environ.update(ENVIRONMENT)
    from harness.engine.evaluate import evaluate

    try:
        return evaluate(cell)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an error of a library that cannot travel: its text can
            return ModelError(f"stage {cell.stage}: {type(error).__name__}: {error}")
        return error


@dataclass(eq=False)
class Work:
    """A cell, the promise of its outcome, and how many workers it has been lost with."""

    cell: Cell
    promise: Future[Outcome] = field(default_factory=Future)
    lost: int = 0

    def settle(self, result: Outcome | Exception) -> None:
        """Keep the promise."""
        if isinstance(result, Exception):
            self.promise.set_exception(result)
        else:
            self.promise.set_result(result)


class Dispatcher:
    """A thread that takes one step after the other until it is told to stop, and the cells that wait for one.

    Args:
        step: give out what is `waiting`, and settle what has come back; takes a fraction of a second, and is only
            called in the thread. What it raises ends the thread, and every promise is kept with it.
        leave: called in the thread at its end: let go of the workers.
    """

    def __init__(self, step: Callable[[Dispatcher], None], leave: Callable[[], None]) -> None:
        self.waiting: deque[Work] = deque()
        self._step, self._leave = step, leave
        self._open: set[Future[Outcome]] = set()
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ct-harness dispatcher", daemon=True)
        self._thread.start()

    def submit(self, cell: Cell) -> Future[Outcome]:
        """The promise of the cell's outcome."""
        work = Work(cell)
        with self._lock:
            if self._failure is not None:
                work.settle(self._failure)
            else:
                self._open.add(work.promise)
                self.waiting.append(work)
        work.promise.add_done_callback(self._open.discard)
        return work.promise

    def again(self, work: Work, reason: str, remedy: str) -> None:
        """Have a cell whose worker was lost computed once more, unless too many were lost with it."""
        work.lost += 1
        if work.lost < ATTEMPTS:
            self.waiting.appendleft(work)
            return
        cell = work.cell
        work.settle(ModelError(
            f"its worker was lost {ATTEMPTS} times on stage {cell.stage} of {len(cell.surviving)} images "
            f"(out of memory?); {remedy}. {reason}"
        ))  # fmt: skip

    def stop(self) -> None:
        """Let go of the workers, and of the promises that are not kept yet."""
        self._stopped.set()
        self._thread.join()
        for promise in list(self._open):
            promise.cancel()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._step(self)
        except Exception as error:  # also what a cluster's library raises: nobody else would hear of it
            failure = error if isinstance(error, HarnessError) else ModelError(f"{type(error).__name__}: {error}")
            with self._lock:
                self._failure = failure
            for promise in list(self._open):
                promise.set_exception(failure)
        finally:
            self._leave()


class Distributed(Executor):
    """Workers on other machines, by a library that is an extra of its own; entering it starts its dispatcher."""

    package: ClassVar[str]
    """The library; the extra is called like the kind."""

    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0

    _dispatcher: Dispatcher = PrivateAttr()

    @model_validator(mode="after")
    def _installed(self) -> Distributed:
        if find_spec(self.package) is None:
            raise SpecError(
                f"executor: kind {self.kind} needs the package {self.package}, which is not installed; "
                f"pip install 'ct-harness[{self.kind}]'"
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._dispatcher.stop()

    def submit(self, cell: Cell) -> Future[Outcome]:
        """See `Executor.submit`; refuses a benchmark on a GPU whose workers have none, and the other way round.

        Raises:
            SpecError: says which key to set.
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
    """Where a traceback or a log says what went wrong."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
