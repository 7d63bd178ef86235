"""The Slurm executor, on submitit's own stand-ins for a cluster: jobs as processes of this machine, and in this one."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Run, csv_of, untimed
from helpers.tasks import first_cells
from helpers.tiny import few_cells, mapping

from harness.api.work import Cell
from harness.errors import ModelError
from harness.executors import slurm
from harness.executors.dispatch import Work
from harness.executors.slurm import Slurm
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


def one_cell(builder: str) -> Cell:
    return first_cells(mapping(models=[model(builder)]))[0]


class TestSlurm(ExecutorContract):
    @pytest.fixture
    def part(self, tmp_path: Path) -> Slurm:
        return Slurm(cluster="debug", folder=str(tmp_path / "jobs"))


def test_jobs_in_this_process_give_the_same_board(here: Path, computed: Path) -> None:
    csv = csv_of(mapping(executor=jobs("debug")), here / "runs")
    assert untimed(csv) == untimed((computed / "first.csv").read_text())


@pytest.mark.slow
def test_a_job_that_dies_costs_its_cell_alone_and_the_board_is_the_same(driver: Path) -> None:
    mortal = few_cells(models=[model("dies_once", name="mixed")])
    alone = untimed(csv_of(mortal, driver / "runs"))
    with sqlite3.connect(driver / "runs" / "tiny" / "ledger.sqlite") as ledger:  # the attacks again, at once
        again = "DELETE FROM cells WHERE json_extract(identity, '$.stage') = 'apgd-ce'"
        assert ledger.execute(again).rowcount == 2
    ledger.close()
    csv = csv_of(mortal | {"executor": jobs("local", folder="jobs")}, driver / "runs")
    assert Path("died.once").exists()
    assert untimed(csv) == alone
    assert not list(Path("jobs").glob("*_result.pkl"))
    assert len(list(Path("jobs").glob("*_submitted.pkl"))) == 1  # of the job that died
    assert list(Path("jobs").glob("*_log.err"))


@pytest.mark.slow
def test_what_kills_every_job_is_a_failed_row(driver: Path, run: Run) -> None:
    ended = run(few_cells(models=[model("dies_always")], executor=jobs("local", workers=1)))
    assert ended.code == 2
    csv = (driver / "leaderboards" / "tiny.csv").read_text()
    assert len(Path("died.always").read_text()) == 3
    assert "failed: its worker was lost 3 times on stage " in csv
    assert " of 24 images (out of memory?); raise executor.memory, or lower batch_size. Job " in csv
    assert "_0_log.err" in csv


@pytest.mark.slow
@pytest.mark.usefixtures("driver")
def test_errors_are_told_as_they_are() -> None:
    with Slurm(cluster="local", workers=2, time=1) as executor:
        narrow, overdue = (executor.submit(one_cell(builder)) for builder in ("narrow", "overdue"))
        with pytest.raises(ModelError, match=r"^the data have labels up to 3, but the network yields 2 logits"):
            narrow.result(60)
        told = "1 minutes; raise executor.time, or lower batch_size"
        with pytest.raises(ModelError, match=told):
            overdue.result(60)


@pytest.mark.slow
@pytest.mark.usefixtures("driver")
def test_leaving_cancels_the_jobs() -> None:
    with Slurm(cluster="local", workers=1) as executor:
        future = executor.submit(one_cell("mixed"))
        while not (in_flight := list(executor._dispatcher._step.__self__._in_flight)):  # type: ignore[attr-defined]
            time.sleep(0.05)
        time.sleep(1)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert future.cancelled()
    assert in_flight[0]._process.wait(10) != 0


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
    cell = one_cell("mixed")
    with Slurm(workers=4, partition="moon", time=30, memory="500M") as executor:
        works = [Work(cell) for _ in range(3)]
        executor._dispatcher.waiting.extend(works)  # at once
        for work in works:
            with pytest.raises(ModelError, match=told):
                work.future.result(20)
    text = Path("submitted.sh").read_text()
    for line in ("--partition=moon", "--time=30", "--mem=500M", "--cpus-per-task=1", "--array=0-2%3"):
        assert f"#SBATCH {line}\n" in text
    assert "gpus" not in text


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
        ({"memory": "8 gigabytes"}, ["executor.memory: ", "text that matches"]),
        ({"time": 0}, ["executor.time: ", "above 0", "found 0"]),
        ({"cluster": "moon"}, ["executor.cluster: ", "'slurm', 'local' or 'debug'", "found 'moon'"]),
        ({"folder": "images.npz"}, ["executor.folder: ", "images.npz cannot be made", "choose another"]),
        ({"gpus": 1, "cluster": "debug"}, ["executor.gpus: ", "device: cuda", "found device: cpu", "executor.gpus=0"]),
    ],
)
def test_bad_fields_are_named(run: Run, fields: dict[str, Any], pieces: list[str]) -> None:
    ended = run(mapping(executor={"kind": "slurm"} | fields))
    assert ended.code == 2
    assert f"error: tiny.yaml: {pieces[0]}" in ended.err
    assert [piece for piece in pieces if piece not in ended.err] == []
