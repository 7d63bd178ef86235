"""The Slurm executor, on submitit's own stand-ins for a cluster: jobs as processes of this machine, and in this one."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ended, csv_of

from harness.api.records import BASELINE
from harness.api.work import Cell, Shard, Task
from harness.config.benchmark import parse_benchmark
from harness.errors import ModelError
from harness.executors import slurm
from harness.executors.dispatch import Work
from harness.executors.slurm import Slurm
from harness.scheduling.trials import CLEAN
from harness.testing import ExecutorContract

pytest.importorskip("submitit")

Mapping = Callable[..., dict[str, Any]]
Untimed = Callable[[str], list[str]]

NETWORKS = """
import os
import signal
from pathlib import Path

from tiny_networks import mixed, narrow


def _elsewhere():
    return os.getpid() != int(Path("driver.pid").read_text())


def dies_once():
    if _elsewhere() and not Path("died.once").exists():
        Path("died.once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return mixed()


def dies_elsewhere():
    if _elsewhere():
        with Path("died.elsewhere").open("a") as log:
            log.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return mixed()


def overdue():
    network = mixed()
    if _elsewhere():  # what Slurm sends to a job whose time is nearly up
        network.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGUSR2))
    return network
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "GRACE", 0.2)
    monkeypatch.setattr(slurm, "TICK", 0.02)


@pytest.fixture
def driver(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`here`, with networks that can tell whether they are loaded in this process."""
    (here / "slurm_networks.py").write_text(NETWORKS)
    (here / "driver.pid").write_text(str(os.getpid()))
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), os.environ["PYTHONPATH"]]))
    return here


def model(builder: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "checkpoint", "builder": f"slurm_networks:{builder}"} | fields


def small(mapping: Mapping, **changes: Any) -> dict[str, Any]:
    """One shard and one β: few cells, since every one of them is a process that imports torch."""
    attack = {"stages": ["apgd-ce"], "iterations": 3}
    threat = {"kind": "Linf", "eps": 0.1, "attack": attack}
    return mapping(batch_size=24, steering={"beta": [0.5]}, threat=threat) | changes


def jobs(cluster: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "slurm", "cluster": cluster, "workers": 2} | fields


def one_cell(mapping: Mapping, builder: str) -> Cell:
    from harness.engine.session import model_session

    benchmark = parse_benchmark({"name": "tiny"} | mapping(models=[model(builder)]))
    (one,) = benchmark.models
    weights = model_session(one, "cpu", True).loaded.sha256
    task = Task(one.label, one, benchmark.dataset, benchmark.threat, 0, "cpu", weights)
    return Cell(task, BASELINE, Shard(tuple(range(8)), "d"), CLEAN, tuple(range(8)))


class TestSlurm(ExecutorContract):
    @pytest.fixture
    def part(self, tmp_path: Path) -> Slurm:
        return Slurm(cluster="debug", folder=str(tmp_path / "jobs"))


def test_jobs_in_this_process_give_the_same_board(
    driver: Path, mapping: Mapping, computed: Path, untimed: Untimed
) -> None:
    csv = csv_of(mapping(executor=jobs("debug")), driver / "runs")
    assert untimed(csv) == untimed((computed / "first.csv").read_text())


@pytest.mark.slow
def test_a_job_that_dies_costs_its_cell_alone_and_the_board_is_the_same(
    driver: Path, mapping: Mapping, untimed: Untimed
) -> None:
    mortal = small(mapping, models=[model("dies_once", name="mixed")])
    alone = untimed(csv_of(mortal, driver / "runs"))
    with sqlite3.connect(driver / "runs" / "tiny" / "ledger.sqlite") as ledger:  # the attacks and the replays again
        again = "DELETE FROM cells WHERE json_extract(identity, '$.stage') IN ('apgd-ce', 'replay')"
        assert ledger.execute(again).rowcount == 3
    ledger.close()
    csv = csv_of(mortal | {"executor": jobs("local", folder="jobs")}, driver / "runs")
    assert Path("died.once").exists()
    assert untimed(csv) == alone
    assert not list(Path("jobs").glob("*_result.pkl"))
    assert len(list(Path("jobs").glob("*_submitted.pkl"))) == 1  # of the job that died
    assert list(Path("jobs").glob("*_log.err"))


@pytest.mark.slow
def test_what_kills_every_job_is_a_failed_row(driver: Path, run: Callable[..., Ended], mapping: Mapping) -> None:
    ended = run(small(mapping, models=[model("dies_elsewhere")], executor=jobs("local", workers=1)))
    assert ended.code == 2
    csv = (driver / "leaderboards" / "tiny.csv").read_text()
    assert len(Path("died.elsewhere").read_text()) == 3
    assert "failed: its worker was lost 3 times on stage " in csv
    assert " of 24 images (out of memory?); raise executor.memory, or lower batch_size. Job " in csv
    assert "_0_log.err" in csv


@pytest.mark.slow
@pytest.mark.usefixtures("driver")
def test_errors_are_told_as_they_are(mapping: Mapping) -> None:
    with Slurm(cluster="local", workers=2, time=1) as executor:
        narrow, overdue = (executor.submit(one_cell(mapping, builder)) for builder in ("narrow", "overdue"))
        with pytest.raises(ModelError, match=r"^the data have labels up to 3, but the network yields 2 logits"):
            narrow.result(60)
        told = "took longer than a job may, 1 minutes; raise executor.time, or lower batch_size$"
        with pytest.raises(ModelError, match=told):
            overdue.result(60)


@pytest.mark.slow
@pytest.mark.usefixtures("driver")
def test_leaving_cancels_the_jobs(mapping: Mapping) -> None:
    with Slurm(cluster="local", workers=1) as executor:
        promise = executor.submit(one_cell(mapping, "mixed"))
        while not (in_flight := list(executor._dispatcher._step.__self__._in_flight)):
            time.sleep(0.05)
        time.sleep(1)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert promise.cancelled()
    assert in_flight[0]._process.wait(10) != 0


SBATCH = """#!/bin/sh
cp "$1" submitted.sh
echo "sbatch: error: invalid partition specified: moon" >&2
exit 1
"""


def test_what_slurm_refuses_is_told(driver: Path, mapping: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("srun", "sbatch"):
        (driver / name).write_text(SBATCH)
        (driver / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(driver), os.environ["PATH"]]))
    told = "its worker was lost 3 times .* no job could be submitted: sbatch: error: invalid partition specified: moon"
    cell = one_cell(mapping, "mixed")
    with Slurm(workers=4, partition="moon", time=30, memory="500M") as executor:
        works = [Work(cell) for _ in range(3)]
        executor._dispatcher.waiting.extend(works)  # at once
        for work in works:
            with pytest.raises(ModelError, match=told):
                work.future.result(20)
    text = Path("submitted.sh").read_text()
    for line_ in ("--partition=moon", "--time=30", "--mem=500M", "--cpus-per-task=1", "--array=0-2%3"):
        assert f"#SBATCH {line_}\n" in text
    assert "gpus" not in text


def test_no_slurm_here(run: Callable[..., Ended], mapping: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    ended = run(mapping(executor={"kind": "slurm"}))
    assert ended.code == 2
    assert ended.err.startswith("error: tiny.yaml: executor: this machine cannot submit jobs to Slurm: ")
    assert ended.err.endswith("start the run on a login node, or set executor.cluster=local to try it without Slurm\n")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"memory": "8 gigabytes"}, "executor.memory: string should match pattern"),
        ({"time": 0}, "executor.time: input should be greater than 0, found 0"),
        ({"cluster": "moon"}, "executor.cluster: input should be 'slurm', 'local' or 'debug', found 'moon'"),
        ({"folder": "images.npz"}, "executor.folder: images.npz cannot be made: "),
        ({"gpus": 1, "cluster": "debug"}, "executor.gpus: workers with 1 GPUs each need device: cuda, found device:"),
    ],
)
def test_bad_fields_are_named(
    run: Callable[..., Ended], mapping: Mapping, fields: dict[str, Any], message: str
) -> None:
    ended = run(mapping(executor={"kind": "slurm"} | fields))
    assert ended.code == 2
    assert f"error: tiny.yaml: {message}" in ended.err
