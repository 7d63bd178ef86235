"""Slurm cluster: one job per portion; portions that are submitted together form one job array."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import Field, model_validator

from harness.api.validation import Count, spelt
from harness.api.work import Portion
from harness.errors import DeviceLost, ModelError, SpecError
from harness.executors.dispatch import ClusterExecutor, Dispatcher, last_line
from harness.executors.placement import environment
from harness.executors.submission import Submission
from harness.executors.worker import Answer, answers
from harness.util.files import write_whole
from harness.util.process import is_last, packed
from harness.util.threads import available_cores

TICK = 0.5
"""Seconds between two polls of the jobs."""
GRACE = 60.0
"""Seconds that the last answer of a finished job may take to appear in a shared directory; NFS remembers for as long
that a file was not there."""

REMEDY = "raise executor.memory, or lower batch_size"


class Slurm(ClusterExecutor):
    """Jobs of a Slurm cluster, one torch thread each.

    A job computes one portion and leaves its results in ``folder`` as they come. A job that dies, or whose time is up,
    costs only what it has not left there; that is submitted again. Every node needs this Python environment, the
    datasets, the checkpoints and ``folder`` at the same paths.

    Args:
        workers: largest number of jobs that are queued or running at a time.
        partition: Slurm partition; the cluster's default if left out.
        time: time limit of a job, in minutes.
        memory: memory of a job, in Slurm's units, such as 8G or 500M.
        gpus: number of GPUs of a job, of any type; it computes on the first.
        gres: GPUs of a job in the words of Slurm's ``--gres``, in place of ``gpus``: gpu:a100:1, or gpu:1g.10gb:1 for a
            MIG instance.
        folder: directory for the jobs' files, visible to every node; finished jobs leave only their logs in it.
        cluster: "slurm"; or "local" to run jobs as processes on this machine, "debug" to run them in this process.
    """

    kind = "slurm"
    package = "submitit"
    location_fields = frozenset({"folder"})

    workers: Count = 16
    partition: Annotated[str, Field(min_length=1)] | None = None
    time: Count = 60
    memory: Annotated[str, *spelt(r"[1-9][0-9]*[KMGT]", "a number and its unit, K, M, G or T, such as 8G")] = "8G"
    gpus: Annotated[int, Field(strict=True, ge=0, le=1_000)] = 0
    gres: Annotated[str, *spelt(r"gpu(:[\w.-]+)*", "gpu with a type or a number, such as gpu:a100:1")] | None = None
    folder: Annotated[str, Field(min_length=1)] = "slurm"
    cluster: Literal["slurm", "local", "debug"] = "slurm"

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> Slurm:
        if self.gpus and self.gres is not None:
            raise ValueError(f"gpus and gres both ask for GPUs, found {self.gpus} and {self.gres!r}; leave one out")
        return self

    @property
    def gpu_field(self) -> str:
        """Name of the field that gives the jobs GPUs."""
        return "gpus" if self.gres is None else "gres"

    def capacity(self, device: str) -> int:
        """Return the number of jobs, as each computes one portion."""
        return 1 if self.cluster == "debug" else self.workers

    def __enter__(self) -> Slurm:
        jobs = _Jobs(self._submitter(), self)
        self._dispatcher = Dispatcher(jobs.step, jobs.cancel)
        return self

    def _submitter(self) -> Any:
        from submitit import AutoExecutor

        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            submitter = AutoExecutor(folder=self.folder, cluster=self.cluster)
        except OSError as error:
            raise SpecError(f"executor.folder: {self.folder} cannot be made: {error}; choose another one") from error
        except RuntimeError as error:
            raise SpecError(
                f"executor: this machine cannot submit jobs to Slurm: {error}; start the run on a login node, "
                "or set executor.cluster=local to try it without Slurm"
            ) from error
        submitter.update_parameters(
            name="ct-harness",
            timeout_min=self.time,
            cpus_per_task=1,
            gpus_per_node=self.gpus or None,
            slurm_gres=self.gres,
            slurm_mem=self.memory,
            slurm_partition=self.partition,
            slurm_array_parallelism=self.workers,
        )
        return submitter


class EndOfJob(BaseException):
    """Slurm is about to end this job.

    It is no `Exception`, so that it is not taken for an error of the builder or the network that was running.

    Args:
        reason: submitit's error, or the exit by which a job asks to be queued again.
    """

    def __init__(self, reason: Exception | SystemExit) -> None:
        super().__init__(str(reason))
        self.reason = reason


def compute_in_job(portion: Portion, folder: Path) -> tuple[int, Answer]:
    """Compute ``portion``; leave its results in ``folder``, and return how many files there are and the last answer."""
    os.environ.update(environment(portion.task.device != "cpu", available_cores(), os.environ))
    _raise_the_end_of_this_job()
    number = 0
    try:
        for answer in answers(portion):
            if is_last(answer):
                return number, answer
            write_whole(_file(folder, number), packed(answer))
            number += 1
    except EndOfJob as end:
        if isinstance(end.reason, SystemExit):
            raise end.reason from end
        return number, end.reason
    raise AssertionError("no last answer")


def _raise_the_end_of_this_job() -> None:
    """Raise `EndOfJob` where submitit's handler of Slurm's signal raises an error of its own."""
    from submitit.core.job_environment import SignalHandler
    from submitit.core.utils import UncompletedJobError

    def raising(handler: Callable[..., object]) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            try:
                handler(number, frame)
            except (UncompletedJobError, SystemExit) as error:
                raise EndOfJob(error) from error

        return handle

    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and isinstance(getattr(handler, "__self__", None), SignalHandler):
            signal.signal(number, raising(handler))


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.pkl"


@dataclass(eq=False)
class _Job:
    """A job that is queued or running.

    Args:
        handle: submitit's job.
        submission: what it computes.
        folder: directory of its results.
        read: number of files read so far.
        ended: time at which it was first seen to have ended.
    """

    handle: Any
    submission: Submission
    folder: Path
    read: int = 0
    ended: float = inf

    def deliver(self) -> None:
        """Deliver the results that have arrived since, and delete their files."""
        while (file := _file(self.folder, self.read)).exists():
            self.submission.accept(pickle.loads(file.read_bytes()))
            file.unlink()
            self.read += 1

    def has_ended(self) -> bool:
        """Return whether Slurm says that it has ended."""
        done = bool(self.handle.done())
        if done:
            self.ended = min(self.ended, time.monotonic())
        return done

    def delete(self) -> None:
        """Delete its files, except its logs."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.handle.paths.submitted_pickle.unlink(missing_ok=True)
        self.handle.paths.result_pickle.unlink(missing_ok=True)


class _Jobs:
    """Jobs in flight.

    Args:
        submitter: submitit's executor.
        settings: the executor whose jobs they are.
    """

    def __init__(self, submitter: Any, settings: Slurm) -> None:
        self._submitter, self._settings = submitter, settings
        self._in_flight: list[_Job] = []

    def step(self, dispatcher: Dispatcher) -> None:
        """Submit what is waiting, and poll every job."""
        submissions = [dispatcher.waiting.popleft() for _ in range(len(dispatcher.waiting))]
        self._submit([submission for submission in submissions if not submission.future.done()], dispatcher)
        for job in list(self._in_flight):
            self._poll(job, dispatcher)
        time.sleep(TICK)

    def cancel(self) -> None:
        """Cancel all jobs, queued or running."""
        for job in self._in_flight:
            job.handle.cancel(check=False)
            job.delete()

    def _submit(self, submissions: list[Submission], dispatcher: Dispatcher) -> None:
        """Submit a job array with a job for each submission."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if not submissions:
            return
        home = Path(self._settings.folder).absolute()
        folders = [home / f"results-{uuid4().hex}" for _ in submissions]
        portions = [submission.left for submission in submissions]
        try:
            handles = self._submitter.map_array(compute_in_job, portions, folders)
        except (FailedJobError, FailedSubmissionError, OSError, subprocess.SubprocessError) as error:
            reason = f"no job could be submitted: {last_line(str(error))}"
            for submission in submissions:
                dispatcher.retry(submission, reason, REMEDY)
        else:
            self._in_flight += map(_Job, handles, submissions, folders)

    def _poll(self, job: _Job, dispatcher: Dispatcher) -> None:
        """Deliver what a job has left so far, and see whether it has ended."""
        ended = job.has_ended()  # asked first, so that nothing can follow what is delivered next
        job.deliver()
        if job.submission.future.done():  # delivery failed: nobody waits for the rest
            job.handle.cancel(check=False)
            self._in_flight.remove(job)
            job.delete()
        elif ended:
            self._finish(job, dispatcher)

    def _finish(self, job: _Job, dispatcher: Dispatcher) -> None:
        """Resolve the submission of a job that has ended, or retry it."""
        try:
            end = self._end_of(job)
        except Exception as error:  # its portion could not be unpickled, or the disk was full
            self._retry(job, last_line(str(error)), dispatcher)
            return
        if end is not None and end[0] == job.read:
            self._in_flight.remove(job)
            job.delete()
            self._accept_last(job, end[1], dispatcher)
        elif time.monotonic() - job.ended > GRACE:
            self._retry(job, job.handle.state, dispatcher)

    def _end_of(self, job: _Job) -> tuple[int, Answer] | None:
        """Return what `compute_in_job` has returned; None if that cannot be seen, perhaps not yet."""
        if self._settings.cluster != "debug" and not job.handle.paths.result_pickle.exists():
            return None
        end: tuple[int, Answer] = job.handle.result()
        return end

    def _accept_last(self, job: _Job, answer: Answer, dispatcher: Dispatcher) -> None:
        """Take the last answer; what a lost device has left goes to another job.

        So does what is left when the job's time was up, provided that it got on.
        """
        from submitit.core.utils import UncompletedJobError

        submission = job.submission
        if isinstance(answer, DeviceLost):
            dispatcher.retry(submission, str(answer), "")
        elif not isinstance(answer, UncompletedJobError):  # raised in the job when Slurm is about to end it
            submission.accept(answer)
        elif job.read:
            dispatcher.retry(submission, f"A job may take {self._settings.time} minutes.", "raise executor.time")
        elif submission.left is not None:
            submission.fail(ModelError(
                f"stage {submission.left.stage}: a job has found no result in its time, "
                f"{self._settings.time} minutes; raise executor.time"
            ))  # fmt: skip

    def _retry(self, job: _Job, state: str, dispatcher: Dispatcher) -> None:
        """Retry what is left of a job that was lost."""
        self._in_flight.remove(job)
        shutil.rmtree(job.folder, ignore_errors=True)
        error = last_line(job.handle.stderr() or "") or "it left no message"
        reason = f"Job {job.handle.job_id} ({state}): {error}; see {job.handle.paths.stderr}"
        dispatcher.retry(job.submission, reason, REMEDY)
