"""The local executor: however many workers there are and whichever of them die, the same numbers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny
from helpers.commands import Run, cells, csv_of, untimed
from helpers.packages import INSTALLED, python_path
from helpers.tasks import first_cells
from helpers.tiny import mapping

from harness.api.work import Cell
from harness.errors import ModelError
from harness.executors import dispatch
from harness.executors.local import ATTEMPTS, Local
from harness.scheduling.trials import CLEAN, MARGIN

pytestmark = pytest.mark.slow  # each worker imports torch


def model(builder: str, module: str = "worker_networks") -> dict[str, Any]:
    return {"kind": "checkpoint", "builder": f"{module}:{builder}"}


def test_two_workers_give_the_same_board_as_none(here: Path, computed: Path) -> None:
    """As does one: see below."""
    csv = csv_of(mapping(executor={"kind": "local", "workers": 2}), here / "runs")
    assert untimed(csv) == untimed((computed / "first.csv").read_text())


# --- four models, of which three fail in their worker ---


@dataclass(frozen=True)
class Failing:
    """A run with one worker, and a run in this process of the models that do not fail in it."""

    folder: Path
    board: list[str]
    alone: list[str]
    cells: dict[str, dict[str, Any]]
    cells_alone: dict[str, dict[str, Any]]

    def rows(self, board: list[str], name: str) -> list[str]:
        return [line for line in board if f",{name}," in line]


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Failing:
    folder = tmp_path_factory.mktemp("failing")
    x, y = tiny.images()
    np.savez(folder / "images.npz", x=x, y=y)
    (folder / "driver.pid").write_text(str(os.getpid()))
    survivors = [model("dies_once"), model("mixed", "tiny_networks")]
    four = [model("dies_always"), model("lapses", "tiny_networks"), *survivors]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", python_path(INSTALLED))
        patch.syspath_prepend(str(INSTALLED))
        alone = csv_of(mapping(models=survivors, threat={"kind": "dim"}), folder / "alone")
        assert not Path("died.once").exists()
        one = {"kind": "local", "workers": 1}
        board = csv_of(mapping(models=four, threat={"kind": "dim"}, executor=one), folder / "runs")
    return Failing(folder, untimed(board), untimed(alone), cells(folder / "runs"), cells(folder / "alone"))


def of_builder(rows: dict[str, dict[str, Any]], builder: str) -> dict[str, dict[str, Any]]:
    return {key: row for key, row in rows.items() if builder in str(row["identity"]["model"])}


def test_a_worker_that_dies_costs_its_cell_alone(failing: Failing) -> None:
    """Nobody dies in the process that scores it alone, which is the same model: another builder has other noise."""
    assert (failing.folder / "died.once").exists()
    found = failing.rows(failing.board, "dies_once")
    assert found
    assert found == failing.rows(failing.alone, "dies_once")
    kept, alone = (of_builder(rows, "dies_once") for rows in (failing.cells, failing.cells_alone))
    assert kept
    assert kept.keys() == alone.keys()


def test_what_kills_every_worker_is_a_failed_row_and_the_others_go_on(failing: Failing) -> None:
    assert len((failing.folder / "died.always").read_text()) == ATTEMPTS == 3
    (row,) = failing.rows(failing.board, "dies_always")
    assert "failed: its worker died 3 times on stage margin of 8 images (out of memory?); lower batch_size." in row
    found = failing.rows(failing.board, "mixed")
    assert len(found) > 3
    assert found == failing.rows(failing.alone, "mixed")


def test_a_model_that_fails_in_the_middle_keeps_what_it_had(failing: Failing) -> None:
    (row,) = failing.rows(failing.board, "lapses")
    assert "failed: stage dim-2: RuntimeError: a lapse" in row
    kept = of_builder(failing.cells, "lapses").values()
    assert {row["identity"]["stage"] for row in kept} == {MARGIN, CLEAN, "dim-1"}


# --- one worker ---


@pytest.fixture(scope="module")
def one_worker() -> Iterator[Local]:
    """Shared: to start a worker is what takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path(INSTALLED))
        with Local(workers=1) as local:
            yield local


@pytest.fixture
def two_cells(here: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Cell, Cell]:
    """Two cells that one worker can compute, wherever it was started."""
    data = {"kind": "arrays", "path": str(here / "images.npz")}
    first, second, *_ = first_cells(mapping(dataset=data))
    return first, second


def pid_of(local: Local) -> int:
    (pool,) = local._pools.values()
    (pid,) = pool._processes
    return int(pid)


def test_an_error_of_the_network_is_told_and_the_worker_lives_on(
    one_worker: Local, here: Path, two_cells: tuple[Cell, Cell]
) -> None:
    data = {"kind": "arrays", "path": str(here / "images.npz")}
    bad, *_ = first_cells(mapping(dataset=data, models=[model("narrow", "tiny_networks")]))
    with pytest.raises(ModelError, match="labels up to 3, but the network yields 2 logits"):
        one_worker.submit(bad).result(60)
    before = pid_of(one_worker)
    good, _ = two_cells
    assert one_worker.submit(good).result(60).key == good.key
    assert pid_of(one_worker) == before


def test_a_worker_that_dies_idle_costs_nothing(one_worker: Local, two_cells: tuple[Cell, Cell]) -> None:
    # Once: a pool found broken when the next cell is given to it raises out of submit(), and ends the run.
    first, second = two_cells
    assert one_worker.submit(first).result(60).key == first.key
    before = pid_of(one_worker)
    os.kill(before, signal.SIGKILL)
    time.sleep(1)  # so that the pool has noticed
    assert one_worker.submit(second).result(60).key == second.key
    assert pid_of(one_worker) != before


def test_leaving_lets_go_of_the_workers_at_once(one_worker: Local, two_cells: tuple[Cell, Cell]) -> None:
    first, _ = two_cells
    one_worker.submit(first).result(60)
    pid = pid_of(one_worker)
    started = time.monotonic()
    one_worker.__exit__()
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
    run: Run, monkeypatch: pytest.MonkeyPatch, kind: str, package: str
) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    ended = run(mapping(), "--executor", kind)
    assert ended.code == 2
    assert ended.err.startswith("error: tiny.yaml: executor: ")
    for piece in (f"kind {kind}", f"package {package}", "not installed", f"pip install 'ct-harness[{kind}]'"):
        assert piece in ended.err
