"""Worker processes on the cores or GPUs of this machine, with one torch thread each."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr

from harness.api.executor import Deliver, Executor
from harness.api.work import Portion
from harness.errors import DeviceLost, ModelError
from harness.executors.patience import REMEDY as WAITS
from harness.executors.patience import TimeLimit, longest_silence
from harness.executors.placement import environments, pinned, this_machine
from harness.executors.submission import Submission
from harness.executors.worker import Answer, answers
from harness.util.gpus import gpus_of
from harness.util.process import Awaited, Process, ProcessLost, TimeIsUp, is_last, packed

REMEDY = "lower batch_size or executor.workers"
OUT_OF_MEMORY = -9
"""Exit code of a process that the system has killed, as it does when memory is short."""


class Local(Executor):
    """Worker processes on this machine, one torch thread each.

    A worker that dies costs only what it has not delivered. Each has one thread, since two threads in each of two busy
    processes run many times slower; and each sees one GPU, or none.

    Args:
        workers: number of worker processes; "auto" starts one per GPU, or one per core where there are none or the
            device is the CPU.
        time_limit: seconds that a worker may go without a result before its model has failed; "auto" follows from the
            pace of the model, and is an hour at least.
    """

    kind = "local"

    workers: Annotated[int, Field(strict=True, gt=0, le=1_000)] | Literal["auto"] = "auto"
    time_limit: TimeLimit = "auto"

    _workers: Sequence[Worker] = PrivateAttr()
    _idle: IdleWorkers = PrivateAttr()
    _submissions: set[Submission] = PrivateAttr()

    @property
    def loading_limit(self) -> float:
        """See `Executor.loading_limit`."""
        return super().loading_limit if self.time_limit == "auto" else self.time_limit

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
            environments = self._environments(portion.task.device)
            self._workers = [Worker(environment, self.time_limit) for environment in environments]
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
            except ProcessLost as lost:
                submission.retry(str(lost), REMEDY if lost.code == OUT_OF_MEMORY else "")
            except TimeIsUp as late:
                submission.fail(ModelError(f"{late}; {WAITS}"))
            except OSError as error:
                submission.fail(ModelError(
                    f"no worker process could be started: {error}; free some memory, or lower executor.workers"
                ))  # fmt: skip
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


class Worker:
    """A process, and the models that it has computed.

    A failure counts in a process that has computed no other model: what the code of one leaves behind there, such as a
    patched ``torch.relu``, is not held against the next.

    Args:
        environment: variables that its process is started with; they pin it to a GPU.
        time_limit: see `Local`.
    """

    def __init__(self, environment: Mapping[str, str], time_limit: TimeLimit = "auto") -> None:
        self._time_limit = time_limit
        self._process = Process(environment, preload="harness.engine.evaluate")
        self._label, self._labels = "", set[str]()
        self._lost_device = False

    @property
    def pid(self) -> int | None:
        """Process id, if a process was started."""
        return self._process.pid

    def rank(self, label: str) -> tuple[bool, bool, bool]:
        """Return a rank for a model, best first: the model is loaded, the process is started, or yet to be started.

        A worker whose GPU has just failed comes last.
        """
        return self._lost_device, not (self._process.runs and self._label == label), not self._process.runs

    def compute(self, submission: Submission) -> Answer:
        """Compute what is left of a submission, deliver its results, and return the last answer, if it got to that.

        Raises:
            ProcessLost: the process has died.
            TimeIsUp: it was silent for too long.
            DeviceLost: the process could no longer use its GPU, and was killed.
        """
        assert submission.left is not None
        job, awaited = packed(partial(answers, pinned(submission.left))), self._awaited(submission.left)
        self._label = submission.label
        if not self._process.runs:
            self._labels.clear()
        self._labels.add(self._label)
        answer: Answer = ()
        with closing(self._process.answers(job, awaited)) as coming:
            for answer in coming:
                if not is_last(answer):
                    submission.accept(answer)  # which takes nothing once its future is done
                if is_last(answer) or submission.future.done():
                    break
        self._lost_device = isinstance(answer, DeviceLost)
        if isinstance(answer, DeviceLost):
            self._process.kill()
            raise answer
        if isinstance(answer, Exception) and len(self._labels) > 1:  # perhaps on account of what another has left there
            self._process.kill()
            raise ProcessLost(f"It had computed another model before: {answer}")
        return answer

    def _awaited(self, portion: Portion) -> Awaited:
        return Awaited(portion.task.label, f"stage {portion.stage}", longest_silence(portion, self._time_limit))

    def close(self) -> None:
        """Kill the process, and start no other."""
        self._process.close()
