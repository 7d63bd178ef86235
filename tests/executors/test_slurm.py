"""The Slurm executor, on submitit's own stand-ins for a cluster: jobs as processes of this machine, and in this one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Run, csv_of, untimed
from helpers.portions import Delivered, portion
from helpers.tiny import few_cells, mapping

from harness.api.work import Portion
from harness.errors import ModelError
from harness.executors import slurm
from harness.executors.slurm import Slurm
from harness.executors.submission import Submission
from harness.testing import ExecutorContract

pytest.importorskip("submitit")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "GRACE", 0.2)
    monkeypatch.setattr(slurm, "TICK", 0.02)


def model(builder: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "checkpoint", "builder": f"worker_networks:{builder}"} | fields


def jobs(cluster: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "slurm", "cluster": cluster, "workers": 2} | fields


def clean(builder: str) -> Portion:
    return portion(mapping(models=[model(builder)]))


def dim(builder: str) -> Portion:
    """24 trials in three batches."""
    return portion(mapping(models=[model(builder)], threat={"kind": "dim"}), stage="dim-1", images=range(24))


class TestSlurm(ExecutorContract):
    @pytest.fixture
    def part(self, tmp_path: Path) -> Slurm:
        return Slurm(cluster="debug", folder=str(tmp_path / "jobs"))


def test_jobs_in_this_process_give_the_same_board(here: Path, computed: Path) -> None:
    csv = csv_of(mapping(executor=jobs("debug")), here / "runs")
    assert untimed(csv) == untimed((computed / "first.csv").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("builder", ["dies_halfway", "stops_halfway"])
def test_a_job_that_ends_early_costs_only_what_it_had_not_left(builder: str) -> None:
    """It dies, or its time is up."""
    work, delivered = dim(builder), Delivered()
    with Slurm(cluster="local", workers=1, folder="jobs") as executor:
        executor.submit(work, delivered).result(120)
    assert Path("halfway").exists()
    assert len(delivered.deliveries) == 3
    assert delivered.agrees_with_evaluate(work)
    left = sorted(path.name.split("_", 1)[1] for path in Path("jobs").iterdir())
    of_the_dead = ["submitted.pkl"] if builder == "dies_halfway" else []
    assert [name for name in left if "log" not in name and not name.endswith(".sh")] == of_the_dead


@pytest.mark.slow
def test_what_kills_every_job_is_a_failed_row(driver: Path, run: Run) -> None:
    ended = run(few_cells(models=[model("dies_always")], executor=jobs("local", workers=1)))
    assert ended.code == 2
    csv = (driver / "leaderboards" / "tiny.csv").read_text()
    assert len(Path("died.always").read_text()) == 3
    assert "failed: its worker was lost 3 times on stage " in csv
    assert " trials left (out of memory?); raise executor.memory, or lower batch_size. Job " in csv
    assert "_0_log.err" in csv


@pytest.mark.slow
@pytest.mark.usefixtures("driver")
def test_errors_are_told_as_they_are() -> None:
    with Slurm(cluster="local", workers=2, time=1) as executor:
        narrow, overdue = (executor.submit(clean(builder), Delivered()) for builder in ("narrow", "overdue"))
        with pytest.raises(ModelError, match=r"^the data have labels up to 3, but the network yields 2 logits"):
            narrow.result(60)
        told = "a job has found no result in its time, 1 minutes; raise executor.time"
        with pytest.raises(ModelError, match=told):
            overdue.result(60)
        with pytest.raises(ModelError, match=told):  # whatever was running: no fault of the builder
            executor.submit(clean("overdue_when_built"), Delivered()).result(60)


@pytest.mark.slow
@pytest.mark.usefixtures("driver")
def test_leaving_cancels_the_jobs() -> None:
    with Slurm(cluster="local", workers=1) as executor:
        future = executor.submit(clean("mixed"), Delivered())
        while not (in_flight := list(executor._dispatcher._step.__self__._in_flight)):  # type: ignore[attr-defined]
            time.sleep(0.05)
        time.sleep(1)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert future.cancelled()
    assert in_flight[0].handle._process.wait(10) != 0


SBATCH = """#!/bin/sh
cp "$1" submitted.sh
echo "sbatch: error: invalid partition specified: moon" >&2
exit 1
"""


def test_what_slurm_refuses_is_told(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("srun", "sbatch"):
        (driver / name).write_text(SBATCH)
        (driver / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(driver), os.environ["PATH"]]))
    told = "its worker was lost 3 times .* no job could be submitted: sbatch: error: invalid partition specified: moon"
    work = clean("mixed")
    with Slurm(workers=4, partition="moon", time=30, memory="500M") as executor:
        submissions = [Submission(work, Delivered()) for _ in range(3)]
        executor._dispatcher.waiting.extend(submissions)  # at once
        for submission in submissions:
            with pytest.raises(ModelError, match=told):
                submission.future.result(20)
    text = Path("submitted.sh").read_text()
    for line in ("--partition=moon", "--time=30", "--mem=500M", "--cpus-per-task=1", "--array=0-2%3"):
        assert f"#SBATCH {line}\n" in text
    assert "gpus" not in text
    assert "gres" not in text


@pytest.mark.parametrize(
    ("fields", "line"), [({"gpus": 2}, "--gpus-per-node=2"), ({"gres": "gpu:1g.10gb:1"}, "--gres=gpu:1g.10gb:1")]
)
def test_gpus_are_asked_for_by_number_or_in_the_words_of_slurm(
    driver: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], line: str
) -> None:
    for name in ("srun", "sbatch"):
        (driver / name).write_text(SBATCH)
        (driver / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(driver), os.environ["PATH"]]))
    with Slurm(**fields) as executor, pytest.raises(ModelError, match="no job could be submitted"):
        executor.submit(clean("mixed"), Delivered()).result(20)
    text = Path("submitted.sh").read_text().splitlines()
    assert [found for found in text if found.startswith("#SBATCH --g")] == [f"#SBATCH {line}"]


def test_no_slurm_here(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    ended = run(mapping(executor={"kind": "slurm"}))
    assert ended.code == 2
    assert ended.err.startswith("error: tiny.yaml: executor: ")
    for piece in ("cannot submit jobs to Slurm", "login node", "executor.cluster=local"):
        assert piece in ended.err


@pytest.mark.parametrize(
    ("fields", "pieces"),
    [
        ({"memory": "8 gigabytes"}, ["executor.memory: ", "a number and its unit", "found '8 gigabytes'"]),
        ({"time": 0}, ["executor.time: ", "above 0", "found 0"]),
        ({"cluster": "moon"}, ["executor.cluster: ", "'slurm', 'local' or 'debug'", "found 'moon'"]),
        ({"folder": "images.npz"}, ["executor.folder: ", "images.npz cannot be made", "choose another"]),
        ({"gpus": 1, "gres": "gpu:1"}, ["executor: ", "gpus and gres", "found 1 and 'gpu:1'", "leave one out"]),
        ({"gres": "a100:1"}, ["executor.gres: ", "gpu with a type or a number", "found 'a100:1'"]),
    ],
)
def test_bad_fields_are_named(run: Run, fields: dict[str, Any], pieces: list[str]) -> None:
    ended = run(mapping(executor={"kind": "slurm"} | fields))
    assert ended.code == 2
    assert f"error: tiny.yaml: {pieces[0]}" in ended.err
    assert [piece for piece in pieces if piece not in ended.err] == []
