"""A device that is lost costs the worker that has lost it, and no result: its trials are computed by another one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.commands import csv_of, untimed
from helpers.packages import INSTALLED, python_path
from helpers.portions import Delivered, portion
from helpers.tiny import mapping

from harness.api.work import Portion
from harness.errors import DeviceLost, ModelError
from harness.executors import slurm, worker
from harness.executors.local import IdleWorkers, Local, Worker
from harness.executors.slurm import Slurm
from harness.executors.submission import ATTEMPTS
from harness.executors.worker import answers, explain_loss

ASSERTION = torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")
REFUSED = torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors")


def model(builder: str, module: str = "worker_networks") -> dict[str, Any]:
    return {"kind": "checkpoint", "builder": f"{module}:{builder}"}


def clean(builder: str = "mixed") -> Portion:
    return portion(mapping(models=[model(builder)]))


# --- what a worker says ---


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("error", [ASSERTION, REFUSED])
def test_a_lost_device_is_the_last_answer(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.engine import evaluate

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(evaluate, "run", fail)
    (last,) = answers(clean())
    assert isinstance(last, DeviceLost)
    assert str(last) == explain_loss(error)


def test_the_message_has_the_first_line_and_a_remedy() -> None:
    told = explain_loss(ASSERTION)
    assert told.startswith("The GPU failed (CUDA error: device-side assert triggered). ")
    assert "TORCH_USE_CUDA_DSA" not in told
    assert "device=cpu" in told
    told = explain_loss(REFUSED)
    assert "busy or unavailable" in told
    assert "EXCLUSIVE_PROCESS mode with another process" in told
    assert told.endswith("set executor.workers to the number of GPUs")


# --- local ---


@dataclass(frozen=True)
class Lossy:
    """A run with one worker of three models, and a run in this process of those that do not always lose the device."""

    folder: Path
    board: list[str]
    alone: list[str]


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> Lossy:
    folder = tmp_path_factory.mktemp("lossy")
    tiny.save_images(folder)
    (folder / "driver.pid").write_text(str(os.getpid()))
    good = [model("loses_device_once"), model("mixed", "tiny_networks")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", python_path(INSTALLED))
        patch.syspath_prepend(str(INSTALLED))
        alone = csv_of(mapping(models=good, threat={"kind": "dim"}), folder / "alone")
        one = {"kind": "local", "workers": 1}
        three = [model("loses_device_always"), *good]
        board = csv_of(mapping(models=three, threat={"kind": "dim"}, executor=one), folder / "runs")
    return Lossy(folder, untimed(board), untimed(alone))


@pytest.mark.slow
def test_another_process_computes_what_is_left_and_the_board_is_the_same(lossy: Lossy) -> None:
    assert len(set((lossy.folder / "built").read_text().split())) == 2
    for name in ("loses_device_once", "mixed"):
        rows = [line for line in lossy.board if f",{name}," in line]
        assert len(rows) > 3
        assert rows == [line for line in lossy.alone if f",{name}," in line]


@pytest.mark.slow
def test_a_model_that_always_loses_the_device_is_a_failed_row(lossy: Lossy) -> None:
    (row,) = [line for line in lossy.board if ",loses_device_always," in line]
    told = "failed: its worker was lost 3 times on stage clean with 72 trials left. The GPU failed (CUDA error: device-"
    assert told in row
    assert "out of memory" not in row


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """Three workers without a process, of which the second has lost its device."""
    made = [Worker({}) for _ in range(3)]
    made[1]._lost_device = True
    yield made
    for one in made:
        one.close()


def test_a_worker_that_has_just_lost_its_device_is_the_last_to_be_asked(workers: list[Worker]) -> None:
    idle = IdleWorkers(workers)
    with idle.one_for("net") as first, idle.one_for("net") as second, idle.one_for("net") as third:
        assert [first, second, third] == [workers[0], workers[2], workers[1]]


def test_what_a_worker_has_lost_waits_for_another_one(workers: list[Worker]) -> None:
    good, bad = workers[0], workers[1]
    idle, taken = IdleWorkers([good, bad]), list[Worker]()

    def take() -> None:
        with idle.one_for("net", but=bad) as worker:
            taken.append(worker)

    waiting = threading.Thread(target=take)
    with idle.one_for("net") as busy:
        assert busy is good
        waiting.start()
        time.sleep(0.05)
        assert taken == []
    waiting.join(5)
    assert taken == [good]
    with IdleWorkers([bad]).one_for("net", but=bad) as only:  # there is no other
        assert only is bad


@pytest.mark.slow
@pytest.mark.usefixtures("driver")
def test_a_worker_keeps_to_its_model() -> None:
    """Two models on two workers, then in turns: each is built once, although either worker is idle."""
    here, there = clean("built_here"), clean("built_there")
    with Local(workers=2) as local:
        for future in [local.submit(work, Delivered()) for work in (here, there)]:
            future.result(60)
        for work in (there, here, here, there):
            local.submit(work, Delivered()).result(60)
    assert len(Path("built").read_text().split()) == 2


# --- slurm ---


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("losses", [1, ATTEMPTS])
def test_a_job_that_loses_its_device_is_followed_by_another(losses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm, "TICK", 0.02)
    started = []

    def lossy_answers(work: Portion) -> Iterator[worker.Answer]:
        started.append(work)
        return iter([DeviceLost(explain_loss(ASSERTION))]) if len(started) <= losses else answers(work)

    monkeypatch.setattr(slurm, "answers", lossy_answers)
    work, delivered = clean(), Delivered()
    with Slurm(cluster="debug") as executor:
        error = executor.submit(work, delivered).exception(60)
    assert len(started) == min(losses + 1, ATTEMPTS)
    if losses == ATTEMPTS:
        assert isinstance(error, ModelError)
        assert "lost 3 times on stage clean with 8 trials left. The GPU failed" in str(error)
    else:
        assert error is None
        assert delivered.agrees_with_evaluate(work)
