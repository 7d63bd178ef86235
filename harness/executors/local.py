"""Worker processes on the cores or GPUs of this machine, with one torch thread each."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr

from harness.api.executor import Deliver, Executor
from harness.api.work import Portion
from harness.errors import DeviceLost, ModelError
from harness.executors.placement import environments, pinned, this_machine
from harness.executors.submission import Submission
from harness.executors.worker import Answer, is_last, packed
from harness.util.gpus import gpus_of

REMEDY = "lower batch_size or executor.workers"


class Local(Executor):
    """Worker processes on this machine, one torch thread each.

    A worker that dies costs only what it has not delivered. Each has one thread, since two threads in each of two busy
    processes run many times slower; and each sees one GPU, or none.

    Args:
        workers: number of worker processes; "auto" starts one per GPU, or one per core where there are none or the
            device is the CPU.
    """

    kind = "local"

    workers: Annotated[int, Field(strict=True, gt=0)] | Literal["auto"] = "auto"

    _workers: Sequence[Worker] = PrivateAttr()
    _idle: IdleWorkers = PrivateAttr()
    _submissions: set[Submission] = PrivateAttr()

    def worker_device(self, device: str) -> str:
        """Return ``device``, whose GPU each worker sees as its only one.

        Raises:
            SpecError: this machine has no such GPU.
        """
        gpus_of(device, this_machine(device).gpus)
        return device

    def capacity(self, device: str) -> int:
        """Return the number of workers."""
        return self.workers if isinstance(self.workers, int) else len(self._environments(device))

    def __enter__(self) -> Local:
        self._workers, self._submissions = (), set()  # their number and GPUs follow from the first portion's device
        return self

    def __exit__(self, *exception: object) -> None:
        for submission in list(self._submissions):
            submission.future.cancel()
        for worker in self._workers:
            worker.close()

    def submit(self, portion: Portion, deliver: Deliver) -> Future[None]:
        """Compute ``portion`` on the next idle worker; see `Executor.submit`."""
        if not self._workers:
            self._workers = [Worker(environment) for environment in self._environments(portion.task.device)]
            self._idle = IdleWorkers(self._workers)
        submission = Submission(portion, deliver)
        self._submissions.add(submission)
        submission.future.add_done_callback(lambda _: self._submissions.discard(submission))
        threading.Thread(target=self._compute, args=(submission,), daemon=True).start()
        return submission.future

    def _environments(self, device: str) -> list[dict[str, str]]:
        return environments(device, self.workers, this_machine(device))

    def _compute(self, submission: Submission) -> None:
        """Compute a submission on an idle worker, and the rest on the next one when that is lost."""
        lost_by: Worker | None = None
        while not submission.future.done():
            try:
                with self._idle.one_for(submission.label, lost_by) as worker:
                    last = worker.compute(submission)
                submission.accept(last)  # now that the worker is idle: whoever waits for this may have work for it
            except WorkerLost as lost:
                submission.retry(str(lost), REMEDY)
            except DeviceLost as lost:
                lost_by = worker
                submission.retry(str(lost), "")
            except Exception as error:  # in a thread, where nobody would hear of it
                submission.fail(error)


class IdleWorkers:
    """Workers that have nothing to do.

    Args:
        workers: all workers.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._idle, self._number = list(workers), len(workers)
        self._changed = threading.Condition()

    @contextmanager
    def one_for(self, label: str, but: Worker | None = None) -> Iterator[Worker]:
        """Within the block, have the idle worker that suits a model best; wait until there is one.

        Args:
            label: the model's name on the leaderboard.
            but: a worker to wait for another than, if there are others: its GPU may be gone for good.
        """

        def suited() -> list[Worker]:
            return [worker for worker in self._idle if worker is not but or self._number == 1]

        with self._changed:
            self._changed.wait_for(suited)
            worker = min(suited(), key=lambda idle: idle.rank(label))
            self._idle.remove(worker)
        try:
            yield worker
        finally:
            with self._changed:
                self._idle.append(worker)
                self._changed.notify_all()


class WorkerLost(Exception):
    """A worker process has ended before its last answer."""


class Worker:
    """A process, started when it is first needed and replaced when it has died.

    Args:
        environment: variables that its process is started with; they pin it to a GPU.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._label = ""
        """The model that it has computed last."""
        self._lost_device = False
        self._closed = False
        self._lock = threading.Lock()
        """Held while the process is started or killed, so that none is started after `close`."""

    @property
    def pid(self) -> int | None:
        """Process id, if a process was started."""
        return None if self._process is None else self._process.pid

    def rank(self, label: str) -> tuple[bool, bool, bool]:
        """Return a rank for a model, best first: the model is loaded, the process is started, or yet to be started.

        A worker whose GPU has just failed comes last.
        """
        started = self._process is not None and self._process.poll() is None
        return self._lost_device, not (started and self._label == label), not started

    def compute(self, submission: Submission) -> Answer:
        """Compute what is left of a submission, deliver its results, and return the last answer, if it got to that.

        Raises:
            WorkerLost: the process has died.
            DeviceLost: the process could no longer use its GPU, and was killed.
        """
        assert submission.left is not None
        message = packed(pinned(submission.left))
        process = self._running()
        self._label = submission.label
        sending, receiving = process.stdin, process.stdout
        assert sending is not None
        assert receiving is not None
        answer: Answer = ()
        try:
            pickle.dump(message, sending)
            sending.flush()
            while not submission.future.done():
                answer = pickle.load(receiving)
                if is_last(answer):
                    break
                submission.accept(answer)
        except (OSError, EOFError, pickle.UnpicklingError) as error:  # the pipe has ended, perhaps within an answer
            self._kill()
            raise WorkerLost(f"The process ended with exit code {process.returncode}.") from error
        finally:
            if not is_last(answer):  # nobody waits for the rest
                self._kill()
        self._lost_device = isinstance(answer, DeviceLost)
        if isinstance(answer, DeviceLost):
            self._kill()
            raise answer
        return answer

    def close(self) -> None:
        """Kill the process, and start no other."""
        with self._lock:
            self._closed = True
        self._kill()

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process, which is started if there is none or it died while idle."""
        with self._lock:
            if self._closed:
                raise WorkerLost("It was released.")
            if self._process is None or self._process.poll() is not None:
                try:
                    self._process = _start(self._environment)
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
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"  # Ctrl-C is the parent's to answer
    serving = f"from harness.executors.worker import serve; serve({os.getpid()})"
    code = f"{deaf}; import sys; sys.path[:] = {sys.path}; {serving}"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
