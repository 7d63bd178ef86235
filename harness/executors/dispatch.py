"""Dispatch of portions to other machines: sent, awaited, and sent again when their worker is lost."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from typing import Annotated, ClassVar

from pydantic import Field, PrivateAttr, model_validator

from harness.api.executor import Deliver, Executor
from harness.api.validation import WRITTEN
from harness.api.work import Portion
from harness.errors import HarnessError, ModelError, SpecError
from harness.executors.submission import Submission


class Dispatcher:
    """A thread that takes step after step until it is stopped, and the queue of submissions that wait to be sent.

    Args:
        step: sends what is `waiting` and delivers what has come back, in a fraction of a second. It runs in the thread
            only; an exception ends the thread and fails every unresolved future.
        close: releases the workers; the thread calls it last.
    """

    def __init__(self, step: Callable[[Dispatcher], None], close: Callable[[], None]) -> None:
        self.waiting: deque[Submission] = deque()
        self._step, self._close = step, close
        self._unresolved: set[Submission] = set()
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ct-harness dispatcher", daemon=True)
        self._thread.start()

    def submit(self, portion: Portion, deliver: Deliver) -> Future[None]:
        """Queue ``portion``; see `Executor.submit`."""
        submission = Submission(portion, deliver)
        with self._lock:
            if self._failure is not None:
                submission.fail(self._failure)
            else:
                self._unresolved.add(submission)
                self.waiting.append(submission)
        submission.future.add_done_callback(lambda _: self._unresolved.discard(submission))
        return submission.future

    def retry(self, submission: Submission, reason: str, remedy: str) -> None:
        """Queue what is left of a submission after its worker was lost; see `Submission.retry`."""
        submission.retry(reason, remedy)
        if not submission.future.done():
            self.waiting.appendleft(submission)

    def stop(self) -> None:
        """Release the workers and cancel the unresolved futures."""
        self._stopped.set()
        self._thread.join()
        for submission in list(self._unresolved):
            submission.future.cancel()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._step(self)
        except Exception as error:  # whatever the cluster's library raises: nobody else would hear of it
            failure = error if isinstance(error, HarnessError) else ModelError(f"{type(error).__name__}: {error}")
            with self._lock:
                self._failure = failure
            for submission in list(self._unresolved):
                submission.fail(failure)
        finally:
            self._close()


class ClusterExecutor(Executor):
    """Workers on other machines, through a library from an optional extra; entering it starts its dispatcher.

    Args:
        gpus: number of GPUs of each worker.
    """

    elsewhere = True
    package: ClassVar[str]
    """Import name of the library; the extra is named after the kind."""

    gpus: Annotated[float, Field(strict=True, ge=0, le=1_000, allow_inf_nan=False), WRITTEN] = 0

    _dispatcher: Dispatcher = PrivateAttr()

    @model_validator(mode="after")
    def _installed(self) -> ClusterExecutor:
        if find_spec(self.package) is None:
            raise SpecError(
                f"executor: kind {self.kind} needs the package {self.package}, which is not installed; "
                f"pip install 'ct-harness[{self.kind}]'"
            )
        return self

    @property
    def gpu_field(self) -> str:
        """Name of the field that gives the workers GPUs."""
        return "gpus"

    def worker_device(self, device: str) -> str:
        """Return "cuda" if the workers have GPUs, otherwise "cpu".

        Raises:
            SpecError: the benchmark wants a GPU and the workers have none, or the other way round, or it numbers GPUs.
        """
        field = self.gpu_field
        expected = "cuda" if getattr(self, field) else "cpu"
        if device in ("auto", expected):
            return expected
        if device.startswith("cuda:"):
            raise SpecError(
                f"device: the cluster chooses the GPUs of its workers, found device: {device}; set device=cuda and "
                "executor.gpus=1"
            )
        if device == "cpu":
            raise SpecError(
                f"executor.{field}: workers with GPUs need device: cuda, found device: cpu; set device=cuda, or leave "
                f"executor.{field} out"
            )
        raise SpecError(
            f"executor.{field}: workers without GPUs need device: cpu, found device: {device}; set executor.gpus=1, "
            "or device=cpu"
        )

    def __exit__(self, *exception: object) -> None:
        self._dispatcher.stop()

    def submit(self, portion: Portion, deliver: Deliver) -> Future[None]:
        """See `Executor.submit`."""
        return self._dispatcher.submit(portion, deliver)


def last_line(text: str) -> str:
    """Return the last non-empty line of a traceback or log, which says what went wrong; empty if there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
