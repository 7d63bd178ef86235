"""Placement: device, GPUs and number of workers say which GPU each worker sees, and with how many threads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers.portions import Delivered, portion
from helpers.tiny import mapping

from harness.api.work import Portion
from harness.errors import SpecError
from harness.executors import placement
from harness.executors.local import Local
from harness.executors.placement import Machine, environment, environments, pinned
from harness.util.threads import available_cores

NUMBERS, MIG = ("2", "5"), ("MIG-c6d4", "MIG-cba6", "MIG-0a1b")


def machine(gpus: tuple[str, ...] = (), cores: int = 4, **inherited: str) -> Machine:
    return Machine(gpus, cores, inherited)


@pytest.mark.parametrize(
    ("gpus", "device", "workers", "seen"),
    [
        ((), "auto", "auto", ["-1"] * 4),
        ((), "cpu", 2, ["-1", "-1"]),
        (NUMBERS, "auto", "auto", ["2", "5"]),
        (NUMBERS, "cuda", "auto", ["2", "5"]),
        (NUMBERS, "cuda", 1, ["2"]),
        (NUMBERS, "cuda", 5, ["2", "5", "2", "5", "2"]),
        (NUMBERS, "cuda:1", "auto", ["5"]),
        (NUMBERS, "cuda:1", 3, ["5", "5", "5"]),
        (NUMBERS, "cpu", "auto", ["-1"] * 4),
        (MIG, "auto", "auto", list(MIG)),
        (MIG, "cuda:2", "auto", ["MIG-0a1b"]),
    ],
)
def test_each_worker_sees_one_gpu_or_none(
    gpus: tuple[str, ...], device: str, workers: int | Literal["auto"], seen: list[str]
) -> None:
    found = environments(device, workers, machine(gpus))
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == seen


@pytest.mark.parametrize(
    ("gpus", "cores", "workers", "threads"),
    [(NUMBERS, 64, "auto", "8"), (NUMBERS, 10, "auto", "5"), (NUMBERS, 4, 8, "1"), ((), 64, 1, "1")],
)
def test_the_compiler_has_eight_threads_on_a_gpu_if_there_are_so_many_cores_a_worker(
    gpus: tuple[str, ...], cores: int, workers: int | Literal["auto"], threads: str
) -> None:
    for found in environments("auto", workers, machine(gpus, cores)):
        assert found["TORCHINDUCTOR_COMPILE_THREADS"] == threads
        assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("gpu", "inherited", "found"),
    [
        (True, {}, "expandable_segments:True"),
        (True, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
        (True, {"PYTORCH_ALLOC_CONF": ""}, None),
        (False, {}, None),
    ],
)
def test_segments_of_the_allocator_expand_unless_the_user_has_said_otherwise(
    gpu: bool, inherited: Mapping[str, str], found: str | None
) -> None:
    assert environment(gpu, 8, inherited).get("PYTORCH_ALLOC_CONF") == found


# --- on a node with GPUs ---


def clean(builder: str, device: str) -> Portion:
    return portion(mapping(models=[{"kind": "checkpoint", "builder": f"worker_networks:{builder}"}]), device=device)


@pytest.fixture
def gpu_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "visible_gpus", lambda: NUMBERS)


@pytest.mark.usefixtures("gpu_node")
def test_the_number_of_workers_follows_from_the_device() -> None:
    cores = available_cores()
    found = {device: Local().capacity(device) for device in ("auto", "cuda", "cuda:1", "cpu")}
    assert found == {"auto": 2, "cuda": 2, "cuda:1": 1, "cpu": cores}
    assert Local(workers=3).capacity("cuda:1") == 3


def test_with_the_cpu_nobody_looks_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "visible_gpus", lambda: pytest.fail("a driver was asked"))
    assert Local().capacity("cpu") == available_cores()
    assert Local().worker_device("cpu") == "cpu"


@pytest.mark.usefixtures("gpu_node")
def test_a_gpu_beyond_the_last_is_refused_before_anything_is_read() -> None:
    from harness.config.benchmark import parse_benchmark
    from harness.engine.prepare import prepare_models

    missing = mapping(device="cuda:2", dataset={"kind": "arrays", "path": "nowhere.npz"}, executor={"kind": "local"})
    told = "^device: cuda:2 was asked for, but torch finds 2 GPUs here, the last of which is cuda:1"
    with pytest.raises(SpecError, match=told):
        prepare_models(parse_benchmark({"name": "tiny"} | missing), offline=True)


@pytest.mark.usefixtures("here")
def test_a_pinned_worker_calls_its_gpu_the_first() -> None:
    assert pinned(clean("mixed", "cuda:1")).task.device == "cuda"
    for device in ("cpu", "auto", "cuda"):
        assert pinned(clean("mixed", device)).task.device == device


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("found", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_resolved_in_the_process_that_computes(
    found: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.engine import computation
    from harness.engine.session import model_session

    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    session = model_session(clean("mixed", "cpu").task.model, "cpu", False)
    monkeypatch.setattr(computation, "model_session", lambda *_: session)
    made = computation.Computation(clean("mixed", "auto"))
    assert made.device == made.portion.task.device == device


@pytest.mark.slow
@pytest.mark.usefixtures("driver", "gpu_node")
@pytest.mark.parametrize(("device", "seen"), [("cpu", "-1"), ("cuda:1", "5")])
def test_a_worker_is_started_with_its_gpu_alone(device: str, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", ",".join(NUMBERS))
    outcome: Any
    with Local(workers=2) as local:
        outcome = local.submit(clean("tells_gpus", device), Delivered()).exception(60)
    assert Path("gpus").read_text() == seen
    assert (outcome is None) == (device == "cpu")  # there is no GPU here
