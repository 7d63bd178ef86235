"""Worker processes on the cores or GPUs of this machine, with one torch thread each."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from queue import LifoQueue
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr

from harness.api.executor import Deliver, Executor
from harness.api.work import Portion
from harness.errors import ModelError
from harness.executors.submission import Submission
from harness.executors.worker import ENVIRONMENT, Answer, is_last, packed

REMEDY = "lower batch_size or executor.workers"


class Local(Executor):
    """Worker processes on this machine, one torch thread each.

    A worker that dies costs only what it has not delivered. Each has one thread, since two threads in each of two busy
    processes run many times slower.

    Args:
        workers: number of worker processes; "auto" starts one per GPU, or one per core without GPUs.
    """

    kind = "local"

    workers: Annotated[int, Field(strict=True, gt=0)] | Literal["auto"] = "auto"

    _workers: list[Worker] = PrivateAttr()
    _idle: LifoQueue[Worker] = PrivateAttr()
    _submissions: set[Submission] = PrivateAttr()

    @property
    def capacity(self) -> int:
        """Number of workers."""
        return self.workers if isinstance(self.workers, int) else _default_workers()

    def __enter__(self) -> Local:
        self._workers = [Worker(number) for number in range(self.capacity)]
        self._idle, self._submissions = LifoQueue(), set()  # last in, first out: a started worker before a new one
        for worker in reversed(self._workers):
            self._idle.put(worker)
        return self

    def __exit__(self, *exception: object) -> None:
        for submission in list(self._submissions):
            submission.future.cancel()
        for worker in self._workers:
            worker.close()

    def submit(self, portion: Portion, deliver: Deliver) -> Future[None]:
        """Compute ``portion`` on the next idle worker; see `Executor.submit`."""
        submission = Submission(portion, deliver)
        self._submissions.add(submission)
        submission.future.add_done_callback(lambda _: self._submissions.discard(submission))
        threading.Thread(target=self._compute, args=(submission,), daemon=True).start()
        return submission.future

    def _compute(self, submission: Submission) -> None:
        """Compute a submission on an idle worker, and the rest on another one when that dies."""
        worker = self._idle.get()
        try:
            while not submission.future.done():
                try:
                    worker.compute(submission)
                except WorkerLost as lost:
                    submission.retry(str(lost), REMEDY)
        except Exception as error:  # in a thread, where nobody would hear of it
            submission.fail(error)
        finally:
            self._idle.put(worker)


class WorkerLost(Exception):
    """A worker process has ended before its last answer."""


class Worker:
    """A process, started when it is first needed and replaced when it has died.

    Args:
        number: its number, from 0, which chooses its GPU.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = threading.Lock()
        """Held while the process is started or killed, so that none is started after `close`."""

    @property
    def pid(self) -> int | None:
        """Process id, if a process was started."""
        return None if self._process is None else self._process.pid

    def compute(self, submission: Submission) -> None:
        """Compute what is left of a submission, until it is done.

        Raises:
            WorkerLost: the process has died.
        """
        assert submission.left is not None
        message = packed(submission.left)
        process = self._running(submission.left.task.device)
        sending, receiving = process.stdin, process.stdout
        assert sending is not None
        assert receiving is not None
        answer: Answer = ()
        try:
            pickle.dump(message, sending)
            sending.flush()
            while not submission.future.done():
                answer = pickle.load(receiving)
                submission.accept(answer)
        except (OSError, EOFError, pickle.UnpicklingError) as error:  # the pipe has ended, perhaps within an answer
            self._kill()
            raise WorkerLost(f"The process ended with exit code {process.returncode}.") from error
        finally:
            if not is_last(answer):  # nobody waits for the rest
                self._kill()

    def close(self) -> None:
        """Kill the process, and start no other."""
        with self._lock:
            self._closed = True
        self._kill()

    def _running(self, device: str) -> subprocess.Popen[bytes]:
        """Return the process, which is started if there is none or it died while idle."""
        with self._lock:
            if self._closed:
                raise WorkerLost("It was released.")
            if self._process is None or self._process.poll() is not None:
                try:
                    self._process = _start(_environment(self._number, device))
                except OSError as error:
                    raise ModelError(
                        f"no worker process could be started: {error}; free some memory, or lower executor.workers"
                    ) from error
            return self._process

    def _kill(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()


def _start(environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker that does not import the caller's script, so that no ``__main__`` guard is needed."""
    code = f"import sys; sys.path[:] = {sys.path}; from harness.executors.worker import serve; serve({os.getpid()})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _environment(worker: int, device: str) -> dict[str, str]:
    """Return the environment of a worker by its number; "cuda" is any GPU, "cuda:1" that one for all workers."""
    if device != "cuda":
        return ENVIRONMENT
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(_gpus())))
    return ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": visible.split(",")[worker % _gpus()]}


def _default_workers() -> int:
    """Return the number of GPUs, or of cores without any."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _gpus() or cores


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
