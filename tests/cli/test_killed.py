"""A run that is killed at any moment goes on where it was, and leaves the same board as one that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import tiny
from helpers.commands import Kept, Running, Start, csv_of, trials, untimed
from helpers.packages import INSTALLED, python_path
from helpers.tiny import mapping

pytestmark = pytest.mark.slow

MOMENTS = 7
KILLED = mapping(
    search={"kind": "full"},
    batch_size=16,
    steering={"beta": [0.9, 0.8, 0.7, 0.5]},
    executor={"kind": "local", "workers": 1},
    threat={
        "kind": "Linf",
        "eps": 0.06,
        "attack": {"stages": ["apgd-ce", "apgd-t", "square"], "iterations": 40, "queries": 500},
    },
)


def kill_leader(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_all(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)


def interrupt(pid: int) -> None:
    """As a terminal does."""
    os.killpg(pid, signal.SIGINT)


def hang_up(pid: int) -> None:
    """As a terminal does that is closed."""
    os.killpg(pid, signal.SIGHUP)


def terminate(pid: int) -> None:
    """As ``kill`` and batch systems do."""
    os.kill(pid, signal.SIGTERM)


ORDERLY: dict[Callable[[int], None], int] = {interrupt: 130, hang_up: 129, terminate: 143}
ENDS: tuple[Callable[[int], None], ...] = (kill_leader, kill_all, *ORDERLY)


@dataclass
class Disturbed:
    """A run that was ended, or had ended before its moment came.

    Args:
        end: the way in which it was to end.
        code: its exit code.
        before: what the ledger held at its start.
        after: what the ledger held at its end.
        board: the leaderboard, where there is one.
        gone: whether all of its processes were gone soon after.
        err: what it printed on stderr.
    """

    end: Callable[[int], None] | None
    code: int
    before: dict[tuple[str, str, str], Kept]
    after: dict[tuple[str, str, str], Kept]
    board: str | None
    gone: bool
    err: str


@dataclass
class Restarts:
    """Runs of one benchmark, each going on where the one before was ended; of a complete one, the next starts anew."""

    runs: list[Disturbed] = field(default_factory=list)
    undisturbed: str = ""
    expected: dict[tuple[str, str, str], Kept] = field(default_factory=dict)


@pytest.fixture(scope="module")
def restarts(tmp_path_factory: pytest.TempPathFactory) -> Restarts:
    """Shared by the laws below, since a run takes seconds to start."""
    folder = tmp_path_factory.mktemp("restarts")
    tiny.save_images(folder)
    (folder / "killed.yaml").write_text(yaml.safe_dump(KILLED))
    record, drawn = Restarts(), random.Random(14)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", python_path(INSTALLED))
        patch.syspath_prepend(str(INSTALLED))
        inline: dict[str, Any] = KILLED | {"name": "undisturbed", "executor": {"kind": "inline"}}
        record.undisturbed = csv_of(inline, folder / "inline")
        record.expected = trials(folder / "inline", "undisturbed")
        whole, took = disturbed(folder, "whole", None, 0)
        record.runs.append(whole)
        number = 0
        for moment in range(MOMENTS):
            end = ENDS[moment % len(ENDS)]
            wait = 0 if end in ORDERLY else drawn.uniform(0, 0.8) * took
            one, _ = disturbed(folder, f"runs-{number}", end, wait)
            record.runs.append(one)
            number += one.board is not None
        record.runs.append(disturbed(folder, f"runs-{number}", None, 0)[0])
    return record


def disturbed(folder: Path, runs: str, end: Callable[[int], None] | None, wait: float) -> tuple[Disturbed, float]:
    """Start a run, end it so many seconds after its first new result, and return what was left of it.

    What comes before is the same for every run, and takes longer than the rest; see the tests of its start below.

    Returns:
        the run, and how long it took from its first new result.
    """
    board = folder / "board.csv"
    board.unlink(missing_ok=True)
    before = trials(folder / runs, "killed")
    images = folder / runs / "killed" / "adversaries.f32"  # the database itself is left alone meanwhile
    size = images.stat().st_size if images.exists() else 0
    victim = Running(folder, "run", "killed.yaml", "--runs", runs, "--out", "board.csv")
    try:
        wait_for(lambda: victim.poll() is not None or (images.exists() and images.stat().st_size > size), 120)
        started = time.monotonic()
        wait_for(lambda: victim.poll() is not None, wait)
        if end is not None and victim.poll() is None:
            end(victim.pid)
        code = victim.wait(120)
        took = time.monotonic() - started
        gone = wait_for(lambda: not alive(victim.pid), 10)
        text = board.read_text() if board.exists() else None
        return Disturbed(end, code, before, trials(folder / runs, "killed"), text, gone, victim.err()), took
    finally:
        victim.end()


def wait_for(happened: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if happened():
            return True
        time.sleep(0.01)
    return False


def alive(group: int) -> bool:
    """Whether a process of the group is there that is not merely unreaped."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # gone since
            continue
        if int(of_group) == group and state != "Z":
            return True
    return False


def test_a_run_killed_at_any_moment_goes_on_and_gives_the_same_bytes(restarts: Restarts) -> None:
    boards = [one.board for one in restarts.runs if one.board is not None]
    assert restarts.runs[-1].code == 0
    for board in boards:
        assert untimed(board) == untimed(restarts.undisturbed)
    assert len(boards) < MOMENTS, "hardly any run was ended in time; give it more to do"


def test_nothing_that_was_kept_is_lost_or_computed_otherwise(restarts: Restarts) -> None:
    for one in restarts.runs:
        assert {key: one.after.get(key) for key in one.before} == one.before
        for key, kept in one.after.items():
            assert kept.value == restarts.expected[key].value
    grown = [one for one in restarts.runs[1:-1] if len(one.before) < len(one.after) < len(restarts.expected)]
    assert grown, "no run was ended between its first result and its last"


def test_the_workers_of_a_killed_run_go_too(restarts: Restarts) -> None:
    # Once: workers outlived a run that was killed, waiting for work that never came, each with its torch (or its GPU).
    assert all(one.gone for one in restarts.runs), "processes of an ended run are still there"
    killed = [one for one in restarts.runs if one.end in (kill_leader, kill_all) and one.board is None]
    assert {one.code for one in killed} == {-signal.SIGKILL}


def test_an_interrupted_run_says_that_nothing_is_lost(restarts: Restarts) -> None:
    interrupted = [one for one in restarts.runs if one.end in ORDERLY and one.board is None]
    assert interrupted
    for one in interrupted:
        assert one.end is not None
        assert one.code == ORDERLY[one.end]
        for piece in ("interrupted", "kept", "run the same command"):
            assert piece in one.err
        assert "Traceback" not in one.err


@pytest.mark.parametrize("end", ORDERLY, ids=lambda end: end.__name__)
def test_each_signal_ends_a_run_in_order(end: Callable[[int], None], here: Path, process: Start) -> None:
    (here / "killed.yaml").write_text(yaml.safe_dump(KILLED))
    started = process("run", "killed.yaml")
    images = here / "runs" / "killed" / "adversaries.f32"
    assert wait_for(lambda: images.exists() and images.stat().st_size > 0, 60)
    end(started.pid)
    assert started.wait(60) == ORDERLY[end]
    assert "interrupted; results so far are kept" in started.err()
    assert wait_for(lambda: not alive(started.pid), 5)
    assert not list(here.rglob("*.part"))


@pytest.mark.parametrize(("number", "first"), [(signal.SIGINT, 0.3), (signal.SIGTERM, 0.55), (signal.SIGHUP, 0.8)])
def test_while_it_starts_it_ends_within_a_second(number: int, first: float, here: Path, process: Start) -> None:
    """At any moment of the imports, which take seconds: every quarter of a second, by one signal after the other."""
    (here / "tiny.yaml").write_text(yaml.safe_dump(KILLED))
    for later in range(3):
        started = process("run", "tiny.yaml")
        time.sleep(first + 0.75 * later)
        os.killpg(started.pid, number)
        asked = time.monotonic()
        assert started.wait(20) in (128 + number, -number)
        assert time.monotonic() - asked < 1
        assert wait_for(lambda pid=started.pid: not alive(pid), 2)  # type: ignore[misc]
        assert "Traceback" not in started.err()
        assert not list(here.rglob("*.part"))


def test_nohup_is_heeded(here: Path, process: Start) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        (here / "tiny.yaml").write_text(yaml.safe_dump(tiny.mapping()))
        started = process("run", "tiny.yaml")
    finally:
        signal.signal(signal.SIGHUP, before)
    time.sleep(1)
    os.killpg(started.pid, signal.SIGHUP)
    assert started.wait(120) == 0, started.err()
