"""Fixtures of several packages' tests: a directory with tiny images, ``ct-harness`` in it, and a run to go on from."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import commands, tiny
from helpers.commands import Command, Ended, Run, Running, Start
from helpers.packages import INSTALLED, python_path
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # of a busy machine, time says nothing
settings.load_profile("no deadline")


def pytest_configure() -> None:
    """Let each process of the tests compute on one thread: with two in each of two busy ones, all are slower by far."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what was imported: millions of objects, and each full pass visits all."""
    gc.freeze()


@pytest.fixture(scope="session")
def site() -> Path:
    """See `INSTALLED`."""
    return INSTALLED


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packages of `INSTALLED` are installed, here and in the processes started from here."""
    monkeypatch.setenv("PYTHONPATH", python_path(INSTALLED))
    monkeypatch.syspath_prepend(str(INSTALLED))
    return INSTALLED


@pytest.fixture(scope="session")
def images() -> tuple[np.ndarray, np.ndarray]:
    """See `tiny.images`."""
    return tiny.images()


@pytest.fixture
def here(tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``images.npz``."""
    monkeypatch.chdir(tmp_path)
    tiny.save_images(tmp_path)
    return tmp_path


@pytest.fixture
def command(here: Path) -> Command:
    """Runs ``ct-harness`` with arguments, in this process and in `here`."""
    return commands.in_process


@pytest.fixture
def run(here: Path, command: Command) -> Run:
    """Writes a mapping as ``tiny.yaml`` and runs it, with any more arguments."""

    def go(benchmark: dict[str, Any], *arguments: str) -> Ended:
        (here / "tiny.yaml").write_text(yaml.safe_dump(benchmark))
        return command("run", "tiny.yaml", *arguments)

    return go


@pytest.fixture
def process(here: Path) -> Iterator[Start]:
    """Starts ``ct-harness`` with arguments as a process of its own, in `here`."""
    started: list[Running] = []

    def start(*arguments: str) -> Running:
        started.append(Running(here, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture(scope="session")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where the tiny benchmark has been run once: ``runs`` and ``first.csv``. Copy it, don't touch it."""
    folder = tmp_path_factory.mktemp("computed")
    tiny.save_images(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny.mapping()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(INSTALLED))
        from helpers import boards

        from harness import pipeline

        boards.write(pipeline.run("tiny.yaml", runs="runs"), Path("first.csv"))
    return folder


@pytest.fixture
def resumed(here: Path, computed: Path) -> Path:
    """`here`, where the tiny benchmark has been run before: see `computed`."""
    shutil.copytree(computed / "runs", here / "runs")
    shutil.copy(computed / "first.csv", here / "first.csv")
    return here
