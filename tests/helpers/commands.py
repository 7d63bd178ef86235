"""``ct-harness`` in this process or in one of its own, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]
"""Runs ``ct-harness`` with arguments."""
Run = Callable[..., Ended]
"""Runs a benchmark, given as a mapping, with further arguments."""


def in_process(*arguments: str) -> Ended:
    """Run ``ct-harness`` in this process; what it did not catch is raised."""
    from typer.testing import CliRunner

    from harness.cli.app import app

    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


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
        """Return its exit code; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int:
        """Wait for its exit code, at most so many seconds."""
        return self._process.wait(seconds)

    def err(self) -> str:
        """Return what it has printed on stderr."""
        return self._err.read_text()

    def end(self) -> None:
        """Kill whatever is left of it and of its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(10)


Start = Callable[..., Running]
"""Starts ``ct-harness`` with arguments as a process of its own."""


class Kept(NamedTuple):
    """What a ledger says of a trial: what it is, and what it has shown and cost.

    Args:
        context: identity of the task under the trial's steering.
        image: hash of the image.
        attempt: identity of the attempt.
        value: score of the image.
        result: the whole result, its costs included, as the ledger has it.
    """

    context: dict[str, Any]
    image: str
    attempt: dict[str, Any]
    value: float
    result: bytes


def trials(runs: Path, name: str = "tiny") -> dict[tuple[str, str, str], Kept]:
    """Read a ledger, by the texts of context, image and attempt; it may be written meanwhile, or not be there yet."""
    from harness.engine.packing import unpack

    path, found = runs / name / "ledger.sqlite", dict[tuple[str, str, str], Kept]()
    if not path.exists():
        return found
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        try:
            rows = connection.execute("SELECT context, size, results FROM packs ORDER BY id").fetchall()
        except sqlite3.OperationalError:  # not made yet
            return found
        texts = {
            table: [text for (text,) in connection.execute(f"SELECT content FROM {table} ORDER BY id")]
            for table in ("contexts", "images", "attempts")
        }
    for context, size, packed in rows:
        records, _ = unpack([(size, packed)])
        for record in records:
            key = texts["contexts"][context], texts["images"][record["image"]], texts["attempts"][record["attempt"]]
            found[key] = Kept(json.loads(key[0]), key[1], json.loads(key[2]), float(record["value"]), record.tobytes())
    return found


def csv_of(benchmark: dict[str, Any], runs: Path) -> str:
    """Run a benchmark, given as a mapping, with its ledger under ``runs``, and return its leaderboard as text."""
    from harness import pipeline
    from harness.config.benchmark import parse_benchmark
    from harness.leaderboard import csv_file

    return csv_file.to_csv(pipeline.run(parse_benchmark({"name": "tiny"} | benchmark), runs=runs))


def untimed(csv: str) -> list[str]:
    """Return the lines of a leaderboard without ``seconds``, its last column."""
    lines = csv.splitlines()
    assert lines[0].endswith(",seconds")
    return [line.rpartition(",")[0] for line in lines]
