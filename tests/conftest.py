"""What several tests share: tiny images, tiny networks whose robust accuracy is known, and third-party parts.

The third-party parts are registered as anyone's would be, by the entry points of a package found on ``sys.path``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

CUSTOM = {"stages": ["apgd-ce", "square"], "iterations": 3, "queries": 5}

INSTALLED = Path(__file__).parent / "helpers" / "installed"
"""A folder of installed packages: the third party's parts, and the tiny networks."""


def install(folder: Path, package: str, entry_points: str, **modules: str) -> None:
    """A package as pip would leave it in ``folder``: its modules, and its metadata with the entry points."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


@pytest.fixture(scope="session")
def site() -> Path:
    """See `INSTALLED`."""
    return INSTALLED


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The third party's package is installed, here and in the processes started from here."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    return site


@pytest.fixture(scope="session")
def images() -> tuple[np.ndarray, np.ndarray]:
    """Images of 8×8 pixels, and their labels: 24 of four classes, in which quadrant y is brighter by 0.02 … 0.4.

    Every quadrant has one grey level, and the three others are equally dark, so ``tiny_networks:quadrants`` loses an
    image to L∞ as soon as 2 ε is more than what its quadrant is brighter by.
    """
    drawn = np.random.default_rng(3)
    y = np.arange(24) % 4
    gaps = drawn.permutation(np.linspace(0.02, 0.4, 24))
    levels = np.repeat(drawn.uniform(0.25, 0.35, (24, 1)), 4, axis=1)
    levels[np.arange(24), y] += gaps
    x = np.kron(levels.reshape(24, 1, 2, 2), np.ones((4, 4)))
    return x.astype("float32"), y.astype("int64")


@pytest.fixture
def here(tmp_path: Path, installed: Path, images: tuple[np.ndarray, np.ndarray], monkeypatch: Any) -> Path:
    """A working directory with ``images.npz``."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "images.npz", x=images[0], y=images[1])
    return tmp_path


def mapping_of(**changes: Any) -> dict[str, Any]:
    """A benchmark of 24 images in three shards, two β and the baseline, three stages: at most 27 cells."""
    return {
        "models": [{"kind": "checkpoint", "builder": "tiny_networks:mixed"}],
        "dataset": {"kind": "arrays", "path": "images.npz"},
        "threat": {"kind": "Linf", "eps": 0.1, "attack": CUSTOM},
        "steering": {"beta": [0.9, 0.5]},
        "batch_size": 8,
        "executor": {"kind": "inline"},
        "device": "cpu",
    } | changes


@pytest.fixture
def mapping() -> Callable[..., dict[str, Any]]:
    """Makes a tiny benchmark's mapping; keys given replace its own."""
    return mapping_of


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(here: Path) -> Callable[..., Ended]:
    """Runs ``ct-harness`` with arguments, in this process and in `here`."""
    from typer.testing import CliRunner

    from harness.cli.app import app

    def run(*arguments: str) -> Ended:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def run(here: Path, command: Callable[..., Ended]) -> Callable[..., Ended]:
    """Writes a mapping as ``tiny.yaml`` and runs it, with any more arguments."""

    def go(benchmark: dict[str, Any], *arguments: str) -> Ended:
        (here / "tiny.yaml").write_text(yaml.safe_dump(benchmark))
        return command("run", "tiny.yaml", *arguments)

    return go


class Running:
    """``ct-harness`` as a process of its own, the leader of a group in which all of its workers are.

    What it prints goes to a file: a pipe would stay open as long as any worker of a killed run holds it.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".err", delete=False) as err:
            self._err = Path(err.name)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness", *arguments],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int:
        """Its exit code, for which it has so many seconds."""
        return self._process.wait(seconds)

    def err(self) -> str:
        """What it has printed on stderr."""
        return self._err.read_text()

    def end(self) -> None:
        """Kill whatever is left of it, and of its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(10)


@pytest.fixture
def process(here: Path) -> Iterator[Callable[..., Running]]:
    """Starts ``ct-harness`` with arguments as a process of its own, in `here`."""
    started: list[Running] = []

    def start(*arguments: str) -> Running:
        started.append(Running(here, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.end()


def cells(runs: Path, name: str = "tiny") -> dict[str, dict[str, Any]]:
    """What a ledger holds: key to its row, the identity parsed."""
    with sqlite3.connect(runs / name / "ledger.sqlite") as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("SELECT * FROM cells ORDER BY key")]
    connection.close()
    return {row["key"]: row | {"identity": json.loads(row["identity"])} for row in rows}


@pytest.fixture
def rows() -> Callable[..., dict[str, dict[str, Any]]]:
    """Reads a ledger's rows; see `cells`."""
    return cells


@pytest.fixture(scope="session")
def computed(tmp_path_factory: pytest.TempPathFactory, site: Path, images: tuple[np.ndarray, np.ndarray]) -> Path:
    """A folder in which the tiny benchmark has been run once: ``runs`` and ``first.csv``. Copy it, don't touch it."""
    folder = tmp_path_factory.mktemp("computed")
    np.savez(folder / "images.npz", x=images[0], y=images[1])
    (folder / "tiny.yaml").write_text(yaml.safe_dump(mapping_of()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(site))
        from harness import pipeline
        from harness.leaderboard import csv_file

        csv_file.write(pipeline.run("tiny.yaml", runs="runs"), Path("first.csv"))
    return folder


@pytest.fixture
def resumed(here: Path, computed: Path) -> Path:
    """`here`, where the tiny benchmark has been run before: see `computed`."""
    shutil.copytree(computed / "runs", here / "runs")
    shutil.copy(computed / "first.csv", here / "first.csv")
    return here


def csv_of(benchmark: dict[str, Any], runs: Path) -> str:
    """The text of the leaderboard of a mapping, its ledger under ``runs``."""
    from harness import pipeline
    from harness.config.benchmark import parse_benchmark
    from harness.leaderboard import csv_file

    return csv_file.to_csv(pipeline.run(parse_benchmark({"name": "tiny"} | benchmark), runs=runs))


def untimed(csv: str) -> list[str]:
    """The lines of a leaderboard without ``seconds``, which is the last column."""
    lines = csv.splitlines()
    assert lines[0].endswith(",seconds")
    return [line.rpartition(",")[0] for line in lines]


@pytest.fixture(name="untimed")
def untimed_fixture() -> Callable[[str], list[str]]:
    """Takes the seconds out of a CSV's text; see `untimed`."""
    return untimed
