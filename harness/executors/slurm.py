"""A Slurm cluster: a job a cell, those that are submitted at once as one array."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.errors import ModelError, SpecError
from harness.executors.dispatch import Dispatcher, Distributed, Work, computed, last_line

TICK = 0.5
"""Seconds between two looks at the jobs."""
GRACE = 15.0
"""Seconds that the result of a job which has ended may take to appear in a shared folder."""

REMEDY = "raise executor.memory, or lower batch_size"

Count = Annotated[int, Field(strict=True, gt=0)]


class Slurm(Distributed):
    """Jobs of a Slurm cluster, one torch thread each.

    A job computes one cell, so that whatever ends a job costs that cell alone, which is then submitted again. It
    imports torch and loads the model first: choose ``batch_size`` such that a cell takes minutes. Every node needs
    this Python environment, the data sets, the checkpoints and ``folder`` at the same paths.

    Args:
        workers: jobs in the queue or running at a time.
        partition: Slurm's; its default where left out.
        time: limit of a job, in minutes.
        memory: of a job, in Slurm's units, such as 8G or 500M.
        gpus: of a job; goes with the benchmark's ``device: cuda``.
        folder: for the jobs' files, seen by every node; what a finished cell left in it is removed, but for its logs.
        cluster: "slurm"; "local" runs the jobs as processes on this machine, "debug" one after the other in this one.
    """

    kind = "slurm"
    package = "submitit"
    location_fields = frozenset({"folder"})

    workers: Count = 16
    partition: Annotated[str, Field(min_length=1)] | None = None
    time: Count = 60
    memory: Annotated[str, Field(pattern=r"^[1-9]\d*[KMGT]$")] = "8G"
    gpus: Annotated[int, Field(strict=True, ge=0)] = 0
    folder: Annotated[str, Field(min_length=1)] = "slurm"
    cluster: Literal["slurm", "local", "debug"] = "slurm"

    @property
    def slots(self) -> int:
        """One cell a job."""
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
            slurm_mem=self.memory,
            slurm_partition=self.partition,
            slurm_array_parallelism=self.workers,
        )
        return submitter


class _Jobs:
    """The jobs that have not come back yet.

    Args:
        submitter: submitit's.
        of: whose they are.
    """

    def __init__(self, submitter: Any, of: Slurm) -> None:
        self._submitter, self._of = submitter, of
        self._in_flight: dict[Any, Work] = {}
        self._ended: dict[Any, float] = {}
        """Since when a job has been over without a result."""

    def step(self, dispatcher: Dispatcher) -> None:
        """Submit the cells that wait, and look at every job."""
        fresh = [dispatcher.waiting.popleft() for _ in range(len(dispatcher.waiting))]
        if fresh:
            self._submit(fresh, dispatcher)
        for job in list(self._in_flight):
            if job.done():
                self._collect(job, dispatcher)
        time.sleep(TICK)

    def cancel(self) -> None:
        """End all of them, whatever they are doing."""
        for job in self._in_flight:
            job.cancel(check=False)

    def _submit(self, works: list[Work], dispatcher: Dispatcher) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            jobs = self._submitter.map_array(computed, [work.cell for work in works])
        except (FailedJobError, FailedSubmissionError, OSError, subprocess.SubprocessError) as error:
            reason = f"no job could be submitted: {last_line(str(error))}"
            for work in works:
                dispatcher.again(work, reason, REMEDY)
        else:
            self._in_flight |= dict(zip(jobs, works, strict=True))

    def _collect(self, job: Any, dispatcher: Dispatcher) -> None:
        """Settle the cell of a job that is over, or have it computed again."""
        from submitit.core.utils import UncompletedJobError

        if not (job.paths.result_pickle.exists() or self._of.cluster == "debug"):
            if time.monotonic() - self._ended.setdefault(job, time.monotonic()) < GRACE:
                return
            self._lose(job, job.state, dispatcher)
            return
        try:
            result = job.result()
        except Exception as error:  # its cell or its outcome could not be unpickled
            self._lose(job, last_line(str(error)), dispatcher)
            return
        work = self._in_flight.pop(job)
        if isinstance(result, UncompletedJobError):  # submitit raises it in the job when Slurm is about to end it
            result = ModelError(
                f"stage {work.cell.stage} of {len(work.cell.surviving)} images took longer than a job may, "
                f"{self._of.time} minutes; raise executor.time, or lower batch_size"
            )
        job.paths.submitted_pickle.unlink(missing_ok=True)
        job.paths.result_pickle.unlink(missing_ok=True)
        work.settle(result)

    def _lose(self, job: Any, state: str, dispatcher: Dispatcher) -> None:
        self._ended.pop(job, None)
        reason = last_line(job.stderr() or "") or "it left no message"
        told = f"Job {job.job_id} ({state}): {reason}; see {job.paths.stderr}"
        dispatcher.again(self._in_flight.pop(job), told, REMEDY)
