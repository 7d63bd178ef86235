"""Slurm cluster: one job per cell; cells that are submitted together form one job array."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.errors import ModelError, SpecError
from harness.executors.dispatch import ClusterExecutor, Dispatcher, Work, compute_in_worker, last_line

TICK = 0.5
"""Seconds between two polls of the jobs."""
GRACE = 15.0
"""Seconds that the result of a finished job may take to appear in a shared directory."""

REMEDY = "raise executor.memory, or lower batch_size"

PositiveInt = Annotated[int, Field(strict=True, gt=0)]


class Slurm(ClusterExecutor):
    """Jobs of a Slurm cluster, one torch thread each.

    A job computes one cell, so a job that dies costs that cell alone, which is then submitted again. As each job first
    imports torch and loads the model, choose ``batch_size`` such that a cell takes minutes. Every node needs this
    Python environment, the datasets, the checkpoints and ``folder`` at the same paths.

    Args:
        workers: largest number of jobs that are queued or running at a time.
        partition: Slurm partition; the cluster's default if left out.
        time: time limit of a job, in minutes.
        memory: memory of a job, in Slurm's units, such as 8G or 500M.
        gpus: number of GPUs of a job; needs ``device: cuda``.
        folder: directory for the jobs' files, visible to every node; finished cells leave only their logs in it.
        cluster: "slurm"; or "local" to run jobs as processes on this machine, "debug" to run them in this process.
    """

    kind = "slurm"
    package = "submitit"
    location_fields = frozenset({"folder"})

    workers: PositiveInt = 16
    partition: Annotated[str, Field(min_length=1)] | None = None
    time: PositiveInt = 60
    memory: Annotated[str, Field(pattern=r"^[1-9]\d*[KMGT]$")] = "8G"
    gpus: Annotated[int, Field(strict=True, ge=0)] = 0
    folder: Annotated[str, Field(min_length=1)] = "slurm"
    cluster: Literal["slurm", "local", "debug"] = "slurm"

    @property
    def slots(self) -> int:
        """Number of jobs, as each computes one cell."""
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
    """Jobs in flight.

    Args:
        submitter: submitit's executor.
        settings: the executor whose jobs they are.
    """

    def __init__(self, submitter: Any, settings: Slurm) -> None:
        self._submitter, self._settings = submitter, settings
        self._in_flight: dict[Any, Work] = {}
        self._finished: dict[Any, float] = {}
        """Time at which a finished job was first seen without a result."""

    def step(self, dispatcher: Dispatcher) -> None:
        """Submit the waiting cells and poll every job."""
        works = [dispatcher.waiting.popleft() for _ in range(len(dispatcher.waiting))]
        if works:
            self._submit(works, dispatcher)
        for job in list(self._in_flight):
            if job.done():
                self._collect(job, dispatcher)
        time.sleep(TICK)

    def cancel(self) -> None:
        """Cancel all jobs, queued or running."""
        for job in self._in_flight:
            job.cancel(check=False)

    def _submit(self, works: list[Work], dispatcher: Dispatcher) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            jobs = self._submitter.map_array(compute_in_worker, [work.cell for work in works])
        except (FailedJobError, FailedSubmissionError, OSError, subprocess.SubprocessError) as error:
            reason = f"no job could be submitted: {last_line(str(error))}"
            for work in works:
                dispatcher.retry(work, reason, REMEDY)
        else:
            self._in_flight |= dict(zip(jobs, works, strict=True))

    def _collect(self, job: Any, dispatcher: Dispatcher) -> None:
        """Settle the cell of a finished job, or retry it."""
        from submitit.core.utils import UncompletedJobError

        if not (job.paths.result_pickle.exists() or self._settings.cluster == "debug"):
            if time.monotonic() - self._finished.setdefault(job, time.monotonic()) < GRACE:
                return
            self._retry(job, job.state, dispatcher)
            return
        try:
            result = job.result()
        except Exception as error:  # its cell or its outcome could not be unpickled
            self._retry(job, last_line(str(error)), dispatcher)
            return
        work = self._in_flight.pop(job)
        if isinstance(result, UncompletedJobError):  # submitit raises it in the job when Slurm is about to end it
            result = ModelError(
                f"stage {work.cell.stage} of {len(work.cell.surviving)} images took longer than a job may, "
                f"{self._settings.time} minutes; raise executor.time, or lower batch_size"
            )
        job.paths.submitted_pickle.unlink(missing_ok=True)
        job.paths.result_pickle.unlink(missing_ok=True)
        work.settle(result)

    def _retry(self, job: Any, state: str, dispatcher: Dispatcher) -> None:
        """Retry the cell of a job that left no result."""
        self._finished.pop(job, None)
        error = last_line(job.stderr() or "") or "it left no message"
        reason = f"Job {job.job_id} ({state}): {error}; see {job.paths.stderr}"
        dispatcher.retry(self._in_flight.pop(job), reason, REMEDY)
