"""The ledger: nothing computed is lost or computed twice, and whatever would change a number is computed anew."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import tiny
from helpers.commands import Running, cells, csv_of, untimed
from helpers.packages import INSTALLED, python_path
from helpers.tiny import mapping
from safetensors.torch import load_file, save_file

from harness import pipeline
from harness.api.records import Steering
from harness.api.work import Adversaries, Cell, Outcome, Shard, Task
from harness.config.benchmark import parse_benchmark
from harness.engine.ledger import Ledger
from harness.errors import LedgerError
from harness.scheduling.trials import REPLAY
from harness.threats.lp import Linf

STAGES = 3
FULL = 3 * 3 * STAGES  # steerings × shards × stages, where some image survives to the end


def task(**changes: Any) -> Task:
    benchmark = parse_benchmark(
        {
            "name": "x",
            "models": [{"kind": "demo", "name": "digits_plain"}],
            "dataset": {"kind": "digits"},
            "threat": {"kind": "Linf", "eps": "8/255"},
            "steering": {"beta": 0.9},
        }
    )
    fields: dict[str, Any] = {
        "label": "m", "model": benchmark.models[0], "dataset": benchmark.dataset, "threat": benchmark.threat,
        "seed": 0, "device": "cpu", "weights_sha256": "ab",
    }  # fmt: skip
    return Task(**(fields | changes))


def cell(**changes: Any) -> Cell:
    fields: dict[str, Any] = {
        "task": task(), "steering": Steering(0.9), "shard": Shard((3, 1, 4), "cd"), "stage": "square",
        "surviving": (3, 4),
    }  # fmt: skip
    return Cell(**(fields | changes))


# --- the identity of a cell ---


@pytest.mark.parametrize(
    "other",
    [
        cell(task=task(weights_sha256="ba")),
        cell(task=task(seed=1)),
        cell(task=task(threat=Linf(eps="9/255"))),
        cell(task=task(threat=Linf(eps="8/255", attack="plus"))),
        cell(steering=Steering(0.95)),
        cell(steering=Steering(0.9, 0.25)),
        cell(steering=Steering(0.9, sites="modules")),
        cell(steering=Steering(1.0)),
        cell(shard=Shard((3, 1), "cd")),
        cell(shard=Shard((3, 4, 1), "cd")),
        cell(shard=Shard((3, 1, 4), "dc")),
        cell(stage="apgd-ce"),
    ],
)
def test_whatever_may_change_an_outcome_changes_the_key(other: Cell) -> None:
    assert other.key != cell().key


@pytest.mark.parametrize(
    "same",
    [
        cell(task=task(label="another name")),
        cell(task=task(device="cuda:1")),
        cell(task=task(offline=True)),
        cell(surviving=(3,)),
        cell(task=task(threat=Linf(eps=8 / 255))),
    ],
)
def test_what_changes_no_outcome_keeps_the_key(same: Cell) -> None:
    assert same.key == cell().key
    assert same.seed == cell().seed


def test_the_baseline_is_one_whatever_c_and_sites_are() -> None:
    assert len({cell(steering=Steering(1.0, *rest)).key for rest in ((), (0.25,), (0.5, "modules"))}) == 1


def test_every_steering_and_stage_of_a_shard_sees_the_same_noise() -> None:
    assert cell(steering=Steering(0.7), stage="apgd-t").seed == cell().seed
    assert cell(shard=Shard((3, 1), "cd")).seed != cell().seed
    assert cell(task=task(seed=1)).seed != cell().seed
    assert 0 <= cell().seed < 2**31


# --- the file ---


def outcome(key: str, flags: tuple[str, ...] = (), adversaries: Adversaries | None = None) -> Outcome:
    return Outcome(key, np.array([1, 0, 0.25], np.float32), 1.5, flags, {"torch": "β"}, adversaries)


def test_an_outcome_comes_back_as_it_went_in(tmp_path: Path) -> None:
    images = torch.rand(2, 1, 4, 4)
    with Ledger(tmp_path / "a" / "b") as ledger:
        assert ledger.get(cell().key) is None
        ledger.append(cell(), outcome(cell().key, flags=("randomized",), adversaries=Adversaries(images, (4, 3))))
    with Ledger(tmp_path / "a" / "b") as ledger:
        found = ledger.get(cell().key)
        path = ledger.adversaries(cell().key)
        with pytest.raises(LedgerError, match=r"0000\.safetensors: missing"):
            ledger.adversaries("0" * 64)
    assert found is not None
    np.testing.assert_array_equal(found.values, np.array([1, 0, 0.25], np.float32))
    assert (found.seconds, found.flags, found.provenance) == (1.5, ("randomized",), {"torch": "β"})
    stored = load_file(path)
    assert torch.equal(stored["images"], images)
    assert stored["indices"].tolist() == [4, 3]


def test_a_ledger_of_another_schema_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ledger.sqlite") as old:
        old.execute("CREATE TABLE cells (old TEXT)")
        old.execute("PRAGMA user_version = 7")
    old.close()
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: .*schema 1, found 7.*move it away"):
        Ledger(tmp_path)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as old:
        assert old.execute("PRAGMA user_version").fetchone() == (7,)
    old.close()


def test_a_file_that_is_no_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("rubbish" * 300)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: cannot be opened or written: .*--runs"):
        Ledger(tmp_path)


def test_images_that_cannot_be_kept_leave_no_row(tmp_path: Path) -> None:
    """The row stands for the images, so it comes after them."""
    with Ledger(tmp_path) as ledger:
        (ledger.images / cell().key[:2]).write_text("in the way")
        with pytest.raises(LedgerError, match="cannot be written"):
            ledger.append(cell(), outcome(cell().key, adversaries=Adversaries(torch.rand(1, 1, 4, 4), (4,))))
        assert ledger.get(cell().key) is None


# --- a run, and another after it ---


def refuse(cell: Cell) -> Outcome:
    pytest.fail("a cell was computed again")


def test_a_rerun_computes_nothing_and_writes_the_same_bytes(resumed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cells(resumed / "runs")
    monkeypatch.setattr("harness.engine.evaluate.evaluate", refuse)
    assert csv_of(mapping(), resumed / "runs") == (resumed / "first.csv").read_text()
    assert cells(resumed / "runs") == before


def test_every_cell_is_kept_and_only_those_that_are_needed(resumed: Path) -> None:
    kept = cells(resumed / "runs")
    stages = [row["identity"]["stage"] for row in kept.values() if row["identity"]["stage"] != REPLAY]
    assert stages.count("clean") == 9
    assert stages.count("clean") >= stages.count("apgd-ce") >= stages.count("square") > 0
    assert len(stages) <= FULL


def test_adversarial_images_are_those_lost_in_the_very_stage_and_lie_in_the_ball(resumed: Path) -> None:
    from tiny_networks import mixed

    clean, labels = tiny.images()
    kept = {
        (str(row["identity"]["steering"]), *row["identity"]["shard"]["images"], row["identity"]["stage"]): row
        for row in cells(resumed / "runs").values()
    }
    found, previous = 0, {"apgd-ce": "clean", "square": "apgd-ce"}
    for (*chain, stage), row in kept.items():
        key, numbers = row["key"], np.array(row["identity"]["shard"]["images"])
        path = resumed / "runs" / "tiny" / "adversaries" / key[:2] / f"{key}.safetensors"
        before = previous.get(str(stage))
        alive = np.frombuffer(row["outcome"], "<f4") > 0
        survived = np.frombuffer(kept[*chain, before]["outcome"], "<f4") > 0 if before else alive
        lost = numbers[survived & ~alive]
        assert path.exists() == bool(len(lost))
        if not len(lost):
            continue
        stored = load_file(path)
        np.testing.assert_array_equal(stored["indices"].numpy(), lost)
        adversarial = stored["images"].numpy()
        assert adversarial.dtype == np.float32
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        distance = np.abs(adversarial.astype("float64") - clean[lost]).reshape(len(lost), -1).max(1)
        assert (distance <= 0.1 * (1 + 1e-4) + 1e-6).all()
        if chain[0] == "baseline":
            assert (mixed()(stored["images"]).argmax(1).numpy() != labels[lost]).all()
        found += len(lost)
    assert found > 0


@pytest.mark.usefixtures("here")
def test_more_betas_reuse_what_is_there(tmp_path: Path) -> None:
    csv_of(mapping(steering={"beta": 0.9}), tmp_path / "grown")
    before = cells(tmp_path / "grown")
    grown = csv_of(mapping(), tmp_path / "grown")
    after = cells(tmp_path / "grown")
    assert {key: after[key] for key in before} == before
    new = [row["identity"] for key, row in after.items() if key not in before]
    new = [one for one in new if one["stage"] != REPLAY]  # another β finds other images to show
    assert new
    assert all(one["steering"] == [0.5, 0.5, "all"] for one in new)
    assert untimed(grown) == untimed(csv_of(mapping(), tmp_path / "at once"))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"batch_size": 12},
        {"threat": {"kind": "Linf", "eps": 0.11, "attack": {"stages": ["apgd-ce"], "iterations": 3}}},
        {"models": [{"kind": "checkpoint", "builder": "tiny_networks:quadrants", "name": "mixed"}]},
    ],
    ids=["seed", "batch size", "eps", "weights"],
)
def test_a_changed_question_reuses_nothing(resumed: Path, change: dict[str, Any]) -> None:
    before = cells(resumed / "runs")
    csv_of(mapping(**change), resumed / "runs")
    after = cells(resumed / "runs")
    assert {key: after[key] for key in before} == before
    clean = [row["identity"] for key, row in after.items() if key not in before and row["identity"]["stage"] == "clean"]
    assert len(clean) == 3 * (2 if "batch_size" in change else 3)


def test_a_changed_pixel_concerns_its_shard_alone(resumed: Path) -> None:
    x, y = tiny.images()
    x[20, 0, 0, 0] += 0.01
    np.savez("changed.npz", x=x, y=y)
    before = cells(resumed / "runs")
    csv_of(mapping(dataset={"kind": "arrays", "path": "changed.npz"}), resumed / "runs")
    new = [row["identity"] for key, row in cells(resumed / "runs").items() if key not in before]
    assert new
    assert all(20 in one["shard"]["images"] for one in new)


def test_moving_the_images_changes_nothing(resumed: Path) -> None:
    before = cells(resumed / "runs")
    os.rename("images.npz", "moved.npz")
    csv_of(mapping(dataset={"kind": "arrays", "path": "moved.npz"}), resumed / "runs")
    assert cells(resumed / "runs") == before


@pytest.mark.usefixtures("here")
def test_weights_that_change_between_two_runs_of_one_process_are_scored_anew(tmp_path: Path) -> None:
    # Once: a model was kept by its spec for the life of the process, so a second run in it (a notebook,
    # after retraining) reported the first run's weights.
    from tiny_networks import mixed

    network = mixed()
    model = {"kind": "checkpoint", "builder": "tiny_networks:mixed", "weights": "w.safetensors"}
    hashes = []
    for _ in range(2):
        save_file(network.state_dict(), "w.safetensors")
        table = pipeline.run(parse_benchmark(mapping(name="tiny", models=[model])), runs=tmp_path / "runs")
        hashes.append(table["weights_sha256"][0])
        with torch.no_grad():
            network.get_parameter("1.weight").mul_(0.5)
    assert hashes[0] != hashes[1]


@pytest.mark.usefixtures("here")
def test_images_that_change_between_two_runs_of_one_process_are_read_anew(tmp_path: Path) -> None:
    # Once: likewise, an .npz rewritten between two runs of one process was not read again.
    hashes = []
    x, y = tiny.images()
    for scale in (1, 0.9):
        np.savez("mine.npz", x=x * np.float32(scale), y=y)
        benchmark = mapping(name="tiny", dataset={"kind": "arrays", "path": "mine.npz"})
        hashes.append(pipeline.run(parse_benchmark(benchmark), runs=tmp_path / "runs")["data_sha256"][0])
    assert hashes[0] != hashes[1]


# --- killed at any moment ---

KILLED = mapping(
    search={"kind": "full"},
    batch_size=4,
    steering={"beta": [0.9, 0.8, 0.7, 0.5]},
    executor={"kind": "local", "workers": 1},
    threat={
        "kind": "Linf",
        "eps": 0.1,
        "attack": {"stages": ["apgd-ce", "square"], "iterations": 60, "queries": 900},
    },
)


@dataclass
class Restarts:
    """A run that was ended three times, each time in another way, and then left alone.

    Args:
        folder: its working directory.
        before, after: what the ledger held at each start and each end, the last run's included.
        codes: exit codes of the ended runs.
        boards: whether there was a leaderboard after each of them.
        gone: whether all processes of each run were gone soon after.
        err: what the run printed that was interrupted.
    """

    folder: Path
    before: list[dict[str, Any]] = field(default_factory=list)
    after: list[dict[str, Any]] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    boards: list[bool] = field(default_factory=list)
    gone: list[bool] = field(default_factory=list)
    err: str = ""


@pytest.fixture(scope="module")
def restarts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarts]:
    """Shared by three laws, since a run takes seconds to start."""
    folder = tmp_path_factory.mktemp("restarts")
    x, y = tiny.images()
    np.savez(folder / "images.npz", x=x, y=y)
    (folder / "killed.yaml").write_text(yaml.safe_dump(KILLED))
    record = Restarts(folder)
    started: list[Running] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", python_path(INSTALLED))
        patch.syspath_prepend(str(INSTALLED))
        inline = KILLED | {"name": "undisturbed", "executor": {"kind": "inline"}}
        (folder / "undisturbed.csv").write_text(csv_of(inline, folder / "other"))
        total = len(cells(folder / "other", "undisturbed"))
        drawn = random.Random(5)
        try:
            for share, end in ((0.02, kill_leader), (0.4, interrupt), (0.75, kill_all), (1, None)):
                record.before.append(cells(folder / "runs", "killed") if started else {})
                victim = Running(folder, "run", "killed.yaml")
                started.append(victim)
                if end is not None:
                    assert wait_for(lambda share=share: counted(folder / "runs") >= max(share * total, 1), 60)  # type: ignore[misc]
                    time.sleep(drawn.uniform(0, 0.2))
                    assert victim.poll() is None, "it was finished before it could be killed; give it more to do"
                    end(victim.pid)
                record.codes.append(victim.wait(60))
                record.gone.append(wait_for(lambda victim=victim: not alive(victim.pid), 10))  # type: ignore[misc]
                record.boards.append((folder / "leaderboards" / "killed.csv").exists())
                record.after.append(cells(folder / "runs", "killed"))
                record.err += victim.err() if end is interrupt else ""
            yield record
        finally:
            for one in started:
                one.end()


def kill_leader(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_all(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)


def interrupt(pid: int) -> None:
    """As a terminal does."""
    os.killpg(pid, signal.SIGINT)


def counted(runs: Path) -> int:
    """How many cells the ledger holds, while another process writes it."""
    path = runs / "killed" / "ledger.sqlite"
    if not path.exists():
        return 0
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        return int(connection.execute("SELECT count(*) FROM cells").fetchone()[0])
    except sqlite3.OperationalError:  # not made yet
        return 0
    finally:
        connection.close()


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


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_where_it_was(restarts: Restarts) -> None:
    undisturbed = cells(restarts.folder / "other", "undisturbed")
    for before, after in zip(restarts.before, restarts.after, strict=True):
        assert {key: after[key] for key in before} == before
    for before, after in zip(restarts.before[:3], restarts.after[:3], strict=True):
        assert len(before) < len(after) < len(undisturbed)
    assert restarts.boards == [False, False, False, True]
    assert restarts.codes[3] == 0
    assert restarts.after[3].keys() == undisturbed.keys()
    board, expected = ((restarts.folder / name).read_text() for name in ("leaderboards/killed.csv", "undisturbed.csv"))
    assert untimed(board) == untimed(expected)


@pytest.mark.slow
def test_the_workers_of_a_killed_run_go_too(restarts: Restarts) -> None:
    # Once: workers outlived a run that was killed, waiting for work that never came, each with its torch (or its GPU).
    assert restarts.codes[0] == -signal.SIGKILL
    assert all(restarts.gone), "processes of an ended run are still there"


@pytest.mark.slow
def test_an_interrupted_run_says_that_nothing_is_lost(restarts: Restarts) -> None:
    assert restarts.codes[1] == 2
    for piece in ("interrupted", "kept", "run the same command"):
        assert piece in restarts.err
    assert "Traceback" not in restarts.err
    assert len(restarts.after[1]) > 0
