"""The local executor: however many workers there are and whichever of them die, the same numbers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ended, csv_of

from harness.api.work import Cell, Task
from harness.config.benchmark import parse_benchmark
from harness.errors import ModelError
from harness.executors import dispatch
from harness.executors.local import ATTEMPTS, Local
from harness.scheduling.trials import CLEAN, MARGIN, chains, grid, shards

Mapping = Callable[..., dict[str, Any]]
Rows = Callable[..., dict[str, dict[str, Any]]]
Untimed = Callable[[str], list[str]]

pytestmark = pytest.mark.slow  # each worker imports torch


def model(builder: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "checkpoint", "builder": f"tiny_networks:{builder}"} | fields


def test_two_workers_give_the_same_board_as_none(
    here: Path, mapping: Mapping, computed: Path, untimed: Untimed
) -> None:
    """As does one: see below."""
    csv = csv_of(mapping(executor={"kind": "local", "workers": 2}), here / "runs")
    assert untimed(csv) == untimed((computed / "first.csv").read_text())


def test_a_worker_that_dies_costs_its_cell_alone(here: Path, mapping: Mapping, rows: Rows, untimed: Untimed) -> None:
    """Nobody dies in the process that scores it alone, which is the same model: another builder has other noise."""
    mortal = mapping(models=[model("dies_once")])
    alone = csv_of(mortal, here / "alone")
    assert not Path("died.once").exists()
    csv = csv_of(mortal | {"executor": {"kind": "local", "workers": 1}}, here / "runs")
    assert Path("died.once").exists()
    assert untimed(csv) == untimed(alone)
    assert rows(here / "runs").keys() == rows(here / "alone").keys()


def test_what_kills_every_worker_is_a_failed_row_and_the_others_go_on(
    here: Path, mapping: Mapping, computed: Path, untimed: Untimed
) -> None:
    both = [model("dies_always"), *mapping()["models"]]
    lines = untimed(csv_of(mapping(models=both, executor={"kind": "local", "workers": 1}), here / "runs"))
    assert len(Path("died.always").read_text()) == ATTEMPTS == 3
    assert "failed: its worker died 3 times on stage margin of 8 images (out of memory?); lower batch_size." in lines[1]
    assert lines[2:] == untimed((computed / "first.csv").read_text())[1:]


def test_a_model_that_fails_in_the_middle_keeps_what_it_had(
    here: Path, mapping: Mapping, rows: Rows, untimed: Untimed
) -> None:
    alone = untimed(csv_of(mapping(threat={"kind": "dim"}), here / "alone"))
    both = [model("lapses"), *mapping()["models"]]
    one = {"kind": "local", "workers": 1}
    lines = untimed(csv_of(mapping(models=both, threat={"kind": "dim"}, executor=one), here / "runs"))
    assert "failed: stage dim-2: RuntimeError: a lapse" in lines[1]
    assert lines[2:] == alone[1:]
    added = rows(here / "runs").keys() - rows(here / "alone").keys()
    assert {rows(here / "runs")[key]["identity"]["stage"] for key in added} == {MARGIN, CLEAN, "dim-1"}


def some_cells(mapping: Mapping, builder: str = "mixed") -> list[Cell]:
    from harness.engine.session import model_session

    benchmark = parse_benchmark({"name": "tiny"} | mapping(models=[model(builder)]))
    (one,) = benchmark.models
    weights = model_session(one, "cpu", True).loaded.sha256
    task = Task(one.label, one, benchmark.dataset, benchmark.threat, 0, "cpu", weights)
    cut = shards(dict.fromkeys(range(24), "d"), 8)
    every = [chain.next([]) for chain in chains(task, grid([0.5], [0.5], "all"), cut)]
    return [cell for cell in every if cell]


@pytest.mark.usefixtures("here")
def test_a_worker_that_dies_idle_costs_nothing(mapping: Mapping) -> None:
    # Once: a pool found broken when the next cell is given to it raises out of submit(), and ends the run.
    first, second, *_ = some_cells(mapping)
    with Local(workers=1) as local:
        assert local.submit(first).result(60).key == first.key
        (pool,) = local._pools.values()
        (pid,) = pool._processes
        os.kill(pid, signal.SIGKILL)
        time.sleep(1)  # so that the pool has noticed
        assert local.submit(second).result(60).key == second.key


@pytest.mark.usefixtures("here")
def test_an_error_of_the_network_is_told_and_the_worker_lives_on(mapping: Mapping) -> None:
    good, *_ = some_cells(mapping)
    bad, *_ = some_cells(mapping, "narrow")
    with Local(workers=1) as local:
        with pytest.raises(ModelError, match="the data have labels up to 3, but the network yields 2 logits"):
            local.submit(bad).result(60)
        before = [list(pool._processes) for pool in local._pools.values()]
        assert local.submit(good).result(60).key == good.key
        assert [list(pool._processes) for pool in local._pools.values()] == before


@pytest.mark.usefixtures("here")
def test_leaving_lets_go_of_the_workers_at_once(mapping: Mapping) -> None:
    first, *_ = some_cells(mapping)
    with Local(workers=1) as local:
        local.submit(first).result(60)
        ((pid,),) = [list(pool._processes) for pool in local._pools.values()]
        started = time.monotonic()
    assert time.monotonic() - started < 5
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_has_one_torch_thread(here: Path) -> None:
    from harness.executors.local import _pool

    assert here.is_dir()
    pool = _pool(0, "cpu")
    try:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result(60) == "1"
    finally:
        pool.shutdown(wait=False, kill_workers=True)


@pytest.mark.parametrize(("kind", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_without_its_library_an_executor_says_how_to_install_it(
    run: Callable[..., Ended], mapping: Mapping, monkeypatch: pytest.MonkeyPatch, kind: str, package: str
) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    ended = run(mapping(), "--executor", kind)
    assert (ended.code, ended.err) == (2, (
        f"error: tiny.yaml: executor: kind {kind} needs the package {package}, which is not installed; "
        f"pip install 'ct-harness[{kind}]'\n"
    ))  # fmt: skip
