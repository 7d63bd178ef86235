"""The local executor: however many workers there are and whichever of them die, the same numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.commands import Run, csv_of, untimed
from helpers.packages import INSTALLED, python_path
from helpers.portions import Delivered, portion
from helpers.tiny import mapping

from harness.api.work import Portion, Report
from harness.errors import ModelError
from harness.executors import dispatch, local
from harness.executors.local import Local
from harness.executors.submission import ATTEMPTS
from harness.testing import ExecutorContract
from harness.util import process

pytestmark = pytest.mark.slow  # each worker imports torch


def model(builder: str, module: str = "worker_networks") -> dict[str, Any]:
    return {"kind": "checkpoint", "builder": f"{module}:{builder}"}


def dim(builder: str, **changes: Any) -> Portion:
    """24 trials in three batches."""
    benchmark = mapping(models=[model(builder)], threat={"kind": "dim"})
    return portion(benchmark, stage="dim-1", images=range(24), **changes)


def pid_of(local: Local) -> int:
    """The pid of the worker that was started first."""
    pid = local._workers[0].pid
    assert pid is not None
    return pid


def comes_true(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, even if nobody has waited for it."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


class TestLocal(ExecutorContract):
    @pytest.fixture
    def part(self) -> Local:
        return Local(workers=2)


def test_two_workers_give_the_same_board_as_none(here: Path, computed: Path) -> None:
    csv = csv_of(mapping(executor={"kind": "local", "workers": 2}), here / "runs")
    assert untimed(csv) == untimed((computed / "first.csv").read_text())


# --- three models, of which two fail in their worker ---


@dataclass(frozen=True)
class Failing:
    """A run with one worker, and a run in this process of the models that do not fail in it."""

    folder: Path
    board: list[str]
    alone: list[str]

    def rows(self, board: list[str], name: str) -> list[str]:
        return [line for line in board if f",{name}," in line]


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Failing:
    folder = tmp_path_factory.mktemp("failing")
    tiny.save_images(folder)
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
    return Failing(folder, untimed(board), untimed(alone))


def test_a_worker_that_dies_leaves_no_trace_on_the_board(failing: Failing) -> None:
    assert (failing.folder / "died.once").exists()
    found = failing.rows(failing.board, "dies_once")
    assert found
    assert found == failing.rows(failing.alone, "dies_once")


def test_what_kills_every_worker_is_a_failed_row_and_the_others_go_on(failing: Failing) -> None:
    assert len((failing.folder / "died.always").read_text()) == ATTEMPTS == 3
    (row,) = failing.rows(failing.board, "dies_always")
    assert "failed: its worker was lost 3 times on stage clean with 72 trials left (out of memory?); " in row
    assert "lower batch_size or executor.workers. The process ended with exit code -9." in row
    found = failing.rows(failing.board, "mixed")
    assert len(found) > 3
    assert found == failing.rows(failing.alone, "mixed")


def test_a_model_that_fails_in_the_middle_is_a_failed_row(failing: Failing) -> None:
    (row,) = failing.rows(failing.board, "lapses")
    assert row.count("RuntimeError: a lapse") == 1


# --- a worker that is shared, since to start one is what takes long ---


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Local]]:
    """One worker, and the directory in which it is started: see `driver`."""
    folder = tmp_path_factory.mktemp("shared")
    tiny.save_images(folder)
    (folder / "driver.pid").write_text(str(os.getpid()))
    with Local(workers=1) as local:
        yield folder, local


@pytest.fixture
def one_worker(shared: tuple[Path, Local], installed: Path, monkeypatch: pytest.MonkeyPatch) -> Local:
    """The shared worker, in its directory, where no test before has left anything."""
    folder, local = shared
    monkeypatch.chdir(folder)
    for left in ("delivered", "halfway"):
        Path(left).unlink(missing_ok=True)
    return local


# --- results on their way ---


def test_results_arrive_while_the_portion_is_computed_in_its_order(one_worker: Local) -> None:
    work, delivered = dim("drips"), Delivered()
    future = one_worker.submit(work, delivered)
    assert comes_true(lambda: bool(delivered.results), 60)
    assert not future.done()
    assert len(delivered.results) < 24
    future.result(60)
    assert delivered.agrees_with_evaluate(work)
    assert delivered.times[-1] - delivered.times[0] > 0.2


def test_a_worker_that_dies_halfway_costs_only_what_it_had_not_delivered(one_worker: Local) -> None:
    work, delivered = dim("dies_halfway"), Delivered()
    one_worker.submit(work, delivered).result(60)
    assert Path("halfway").exists()
    assert delivered.is_each_once(work)
    assert delivered.agrees_with_evaluate(work)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15, 0.3])
def test_kills_at_any_moment_deliver_each_result_once(delay: float, one_worker: Local) -> None:
    """Twice, once while the first batch is computed and once after ``delay`` seconds of the next worker."""
    work, delivered = dim("drips"), Delivered()
    future = one_worker.submit(work, delivered)
    for seconds in (0.0, delay):
        started = len(delivered.results)
        assert comes_true(lambda: len(delivered.results) > started or future.done(), 60)  # noqa: B023
        time.sleep(seconds)
        os.kill(pid_of(one_worker), signal.SIGKILL)
    future.result(60)
    assert delivered.is_each_once(work)
    assert delivered.agrees_with_evaluate(work)


def test_a_delivery_that_fails_is_told_and_stops_its_worker(one_worker: Local) -> None:
    def refuse(reports: Sequence[Report]) -> None:
        raise OSError("the disk is full")

    work, delivered = dim("drips"), Delivered()
    with pytest.raises(OSError, match="the disk is full"):
        one_worker.submit(work, refuse).result(60)
    one_worker.submit(work, delivered).result(60)
    assert delivered.is_each_once(work)


@pytest.fixture
def good(one_worker: Local) -> Portion:
    return portion(mapping())


def test_an_error_of_the_network_is_told_and_the_worker_lives_on(one_worker: Local, good: Portion) -> None:
    bad = portion(mapping(models=[model("narrow", "tiny_networks")]))
    with pytest.raises(ModelError, match="labels up to 3, but the network yields 2 logits"):
        one_worker.submit(bad, Delivered()).result(60)
    before = pid_of(one_worker)
    delivered = Delivered()
    one_worker.submit(good, delivered).result(60)
    assert delivered.agrees_with_evaluate(good)
    assert pid_of(one_worker) == before


def test_more_portions_than_workers_wait_for_their_turn(one_worker: Local, good: Portion) -> None:
    delivered = [Delivered() for _ in range(3)]
    for future in [one_worker.submit(good, each) for each in delivered]:
        future.result(60)
    assert all(each.is_each_once(good) for each in delivered)


def test_a_worker_that_dies_idle_costs_nothing(one_worker: Local, good: Portion) -> None:
    one_worker.submit(good, Delivered()).result(60)
    before = pid_of(one_worker)
    os.kill(before, signal.SIGKILL)
    delivered = Delivered()
    one_worker.submit(good, delivered).result(60)
    assert delivered.is_each_once(good)
    assert pid_of(one_worker) != before


def test_leaving_lets_go_of_the_workers_at_once(one_worker: Local, good: Portion) -> None:
    one_worker.submit(good, Delivered()).result(60)
    pid = pid_of(one_worker)
    started = time.monotonic()
    one_worker.__exit__()
    assert time.monotonic() - started < 5
    assert is_gone(pid)
    one_worker.__enter__()


@pytest.mark.usefixtures("driver")
def test_leaving_cancels_what_is_in_flight_and_what_waits() -> None:
    delivered = Delivered()
    with Local(workers=1) as local:
        futures = [local.submit(dim("drips"), delivered) for _ in range(2)]
        assert comes_true(lambda: bool(delivered.results), 60)
        pid = pid_of(local)
    assert all(future.cancelled() for future in futures)
    assert is_gone(pid)
    count = len(delivered.results)
    time.sleep(0.5)
    assert len(delivered.results) == count
    assert local._workers[0].pid == pid  # no other was started


# --- the process ---

SCRIPT = """
import sys
from harness.api.model import Model
from harness.executors.local import Local
from helpers.portions import Delivered, portion
from helpers.tiny import mapping
from harness.models.checkpoint import Checkpoint
from dataclasses import replace

class Mine(Checkpoint):  # a part that only this script defines
    kind = "mine"

print("once", flush=True)
work = portion(mapping())
mine = Mine(builder="tiny_networks:mixed")
work = replace(work, task=replace(work.task, model=mine, weights_sha256=mine.load().sha256))
with Local(workers=1) as local:
    delivered = Delivered()
    local.submit(work, delivered).result(60)
    print(len(delivered.results), local._workers[0].pid, flush=True)
    if len(sys.argv) > 1:
        sys.stdin.read()
"""


@pytest.fixture
def script(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A script without a ``__main__`` guard, with a part of its own."""
    monkeypatch.setenv("PYTHONPATH", python_path(INSTALLED, Path(__file__).parents[1], Path(__file__).parents[2]))
    (here / "script.py").write_text(SCRIPT)
    return [sys.executable, "script.py"]


def test_a_script_needs_no_guard_and_may_define_parts(script: list[str]) -> None:
    ended = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    once, results = ended.stdout.splitlines()
    assert once == "once"
    assert results.split()[0] == "8"


def test_workers_exit_when_their_parent_is_killed(script: list[str]) -> None:
    with subprocess.Popen([*script, "stay"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "once\n"
        pid = int(process.stdout.readline().split()[1])
        process.kill()
    assert comes_true(lambda: is_gone(pid))


@pytest.mark.usefixtures("driver")
def test_a_worker_has_one_torch_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with Local(workers=1) as local:
        local.submit(portion(mapping(models=[model("tells_threads")])), Delivered()).result(60)
    assert Path("threads").read_text() == "1"


def test_what_one_model_leaves_behind_in_a_worker_is_not_held_against_the_next(
    one_worker: Local, good: Portion
) -> None:
    delivered = Delivered()
    one_worker.submit(portion(mapping(models=[model("spoils")])), Delivered()).result(120)
    one_worker.submit(good, delivered).result(120)
    assert delivered.is_each_once(good)
    assert delivered.agrees_with_evaluate(good)


def test_a_worker_that_is_stuck_is_named_and_given_up_and_the_next_model_is_computed(
    one_worker: Local, good: Portion, capsys: pytest.CaptureFixture[str]
) -> None:
    delivered = Delivered()
    one_worker.submit(good, Delivered()).result(120)  # now that it is started, it answers at once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "longest_silence", lambda *_: 3.0)
        patch.setattr(process, "FIRST_NOTE", 1.0)
        with pytest.raises(ModelError, match=r"^stage dim-1: no answer for 3 s; look .* executor\.time_limit$"):
            one_worker.submit(dim("stuck"), Delivered()).result(120)
    one_worker.submit(good, delivered).result(120)
    assert delivered.is_each_once(good)
    assert "stuck: stage dim-1: no answer for 1 s; still waiting\n" in capsys.readouterr().err


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
