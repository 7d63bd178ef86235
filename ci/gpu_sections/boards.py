"""Is a board the same, whoever computes it?"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gpu_sections.section import Finding, Miss, Place, expect, table
from harness.api.work import Report
from harness.config.benchmark import load_benchmark
from harness.leaderboard.row import failures_of, rows_of
from harness.pipeline import NullListener, run

ROOT = Path(__file__).parents[2]
NAME = "digits_linf"
QUICK = ("dataset.n=8", "threat.attack={stages: [apgd-ce, square], iterations: 5, queries: 20}", "steering.beta=[0.8]")
"""What makes the benchmark quick where there is no GPU; the committed board does not apply then."""


class Killer(NullListener):
    """Kills a worker after so many deliveries."""

    def __init__(self, after: int) -> None:
        self.left, self.killed = after, 0

    def advanced(self, label: str, computed: Sequence[Report], left: float) -> None:
        """See `harness.engine.scheduler.ProgressListener`."""
        self.left -= 1
        if self.left == 0 and (workers := _workers()):
            os.kill(workers[0], signal.SIGKILL)
            self.killed += 1


def boards(place: Place) -> Iterator[Finding]:
    """Compute digits_linf on one worker, and on two of which one is killed; then compare with the committed board."""
    killer = Killer(after=5)
    one = _board(place, 1, NullListener())
    two = _board(place, 2, killer)
    for model, why in failures_of(rows_of(two)).items():
        yield Miss(f"boards: {model} failed: {why}")
    yield from expect(killer.killed == 1, "boards: no worker was there to be killed")
    yield from expect(
        one.drop(columns="seconds").equals(two.drop(columns="seconds")),
        f"boards: one worker and two give different boards:\n{one.compare(two) if one.shape == two.shape else two}",
    )
    yield table([{"workers": n, "seconds": round(float(made["seconds"].sum()), 1)} for n, made in ((1, one), (2, two))])
    if place.is_gpu:
        yield from _against_committed(two)
    else:
        yield "A smaller benchmark, so that the committed board was not compared."


def _board(place: Place, workers: int, listener: NullListener) -> pd.DataFrame:
    overrides = [f"executor={{kind: local, workers: {workers}}}", f"device={place.device}"]
    overrides += [] if place.is_gpu else QUICK
    benchmark = load_benchmark(ROOT / "benchmarks" / f"{NAME}.yaml", overrides)
    return run(benchmark, runs=place.home / str(workers), offline=True, listener=listener)


def _against_committed(board: pd.DataFrame) -> Iterator[Finding]:
    """Compare each row with the committed board's: clean and robust accuracy within one image."""
    key = ["model", "status", "beta", "c"]
    columns = [*key, "n", "clean", "robust"]
    committed = pd.read_csv(ROOT / "leaderboards" / f"{NAME}.csv")  # also one that lacks newer columns
    rows: list[dict[str, Any]] = []
    both = board[columns].merge(committed[columns], on=key, how="outer", suffixes=("", " committed"))
    for row in both[both["status"] == "ok"].to_dict("records"):
        apart = [abs(row[name] - row[f"{name} committed"]) * row["n"] for name in ("clean", "robust")]
        rows.append({name: row[name] for name in ("model", "beta", "clean", "robust", "robust committed")})
        yield from expect(
            all(images <= 1 + 1e-6 for images in apart),  # a row that is missing has NaN
            f"boards: {row['model']} at β = {row['beta']:g} is {max(apart):.0f} images from the committed row",
        )
    yield table(rows)


def _workers() -> list[int]:
    """Return the worker processes of this one."""
    children = [int(child) for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()]
    return [child for child in children if b"harness.executors.worker" in _command(child)]


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""
