"""A head node without a driver: it prepares on the CPU, and only its workers look for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from helpers.commands import Run, csv_of, untimed
from helpers.tiny import few_cells, mapping

from harness.api.work import Portion
from harness.config.benchmark import parse_benchmark
from harness.errors import SpecError
from harness.executors import slurm
from harness.executors.ray import Ray
from harness.executors.slurm import Slurm
from harness.executors.worker import Answer, answers

pytest.importorskip("submitit")

NEED_A_DRIVER = ("is_available", "device_count", "current_device", "get_device_name", "init", "_lazy_init")


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that needs a driver fails in this process, which also prepares, and Slurm is polled often."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("Found no NVIDIA driver on your system")

    for name in NEED_A_DRIVER:
        monkeypatch.setattr(torch.cuda, name, fail)
    monkeypatch.setattr(slurm, "TICK", 0.02)
    monkeypatch.setattr(Slurm, "in_process", True)


def jobs(cluster: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "slurm", "cluster": cluster, "workers": 1} | fields


def test_without_gpus_auto_is_the_cpu(here: Path, computed: Path) -> None:
    csv = csv_of(mapping(executor=jobs("debug"), device="auto"), here / "runs")
    assert untimed(csv) == untimed((computed / "first.csv").read_text())


@pytest.mark.slow
def test_jobs_without_gpus_give_the_same_board(here: Path) -> None:
    clean = few_cells(threat={"kind": "clean"})  # a job of an attack is no other, and takes seconds
    csv = csv_of(clean | {"executor": jobs("local"), "device": "auto"}, here / "runs")
    assert untimed(csv) == untimed(csv_of(clean, here / "alone"))


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize("fields", [{"gpus": 1}, {"gres": "gpu:1g.10gb:1"}])
def test_jobs_with_gpus_are_told_to_use_them_and_nobody_here_does(
    here: Path, monkeypatch: pytest.MonkeyPatch, device: str, fields: dict[str, Any]
) -> None:
    told = []

    def on_the_cpu(portion: Portion) -> Iterator[Answer]:
        told.append(portion.task.device)
        return answers(replace(portion, task=replace(portion.task, device="cpu")))

    monkeypatch.setattr(slurm, "answers", on_the_cpu)
    csv = csv_of(few_cells(executor=jobs("debug", **fields), device=device), here / "runs")
    assert set(told) == {"cuda"}
    assert untimed(csv) == untimed(csv_of(few_cells(), here / "alone"))


@pytest.mark.parametrize(
    ("fields", "device", "pieces"),
    [
        ({"gpus": 1}, "cpu", ["executor.gpus: workers with GPUs", "found device: cpu", "leave executor.gpus out"]),
        ({"gres": "gpu:1"}, "cpu", ["executor.gres: workers with GPUs", "leave executor.gres out"]),
        ({}, "cuda", ["executor.gpus: workers without GPUs", "found device: cuda", "executor.gpus=1", "device=cpu"]),
        ({}, "cuda:1", ["device: the cluster chooses", "found device: cuda:1", "device=cuda and executor.gpus=1"]),
        ({"gpus": 2}, "cuda:1", ["device: the cluster chooses", "found device: cuda:1"]),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_contradiction_is_told_before_anything_is_read(
    run: Run, fields: dict[str, Any], device: str, pieces: list[str]
) -> None:
    missing = {"kind": "arrays", "path": "nowhere.npz"}
    ended = run(mapping(executor=jobs("debug", **fields), device=device, dataset=missing))
    assert ended.code == 2
    assert f"error: tiny.yaml: {pieces[0]}" in ended.err
    assert [piece for piece in pieces if piece not in ended.err] == []
    assert "nowhere" not in ended.err


def test_a_fraction_of_a_gpu_is_one() -> None:
    pytest.importorskip("ray")
    assert Ray(gpus=0.5).worker_device("auto") == "cuda"
    assert Ray().worker_device("auto") == Slurm().worker_device("auto") == "cpu"
    with pytest.raises(SpecError, match="workers with GPUs need device: cuda, found device: cpu"):
        Ray(gpus=0.5).worker_device("cpu")


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.usefixtures("here")
def test_doctor_misses_no_gpu_where_no_worker_is(device: str) -> None:
    from harness.checks.doctor import doctor

    benchmark = parse_benchmark({"name": "tiny"} | few_cells(executor=jobs("slurm", gpus=1), device=device))
    found = list(doctor(benchmark, runs=Path("runs"), out=[Path("board.csv")]))
    assert {finding.check for finding in found if finding.level != "ok"} <= {"grid"}
    assert "1 workers of kind slurm elsewhere: models are checked on this machine's CPU; python 3" in found[0].text
