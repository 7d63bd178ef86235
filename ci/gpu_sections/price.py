"""What a run costs: memory against the estimate, and a whole board against AutoAttack's library."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import torch
from helpers.library import configured

from gpu_sections.section import Finding, Place, Skipped, expect, needs_a_gpu, table
from gpu_sections.subjects import portion, question, results
from gpu_sections.timing import wait
from harness.api.work import Portion
from harness.checks import cost
from harness.checks.measurement import measure
from harness.config.benchmark import parse_benchmark
from harness.engine.computation import Computation
from harness.engine.numerics import reproducible
from harness.engine.session import model_session
from harness.leaderboard.row import LeaderboardRow, attack_runs, rows_of
from harness.pipeline import run
from harness.threats.lp import Lp

WIDTH = 256
MIB = 1 << 20
FEW = 8
"""Images that the estimate is made of."""
STAGES = ("apgd-ce", "fab-t", "square")
BOARD, ONE = 128, 256
"""Images of the board, and of one AutoAttack."""
BETAS = {"from": 0.70, "to": 1.0, "step": 0.01}
TARGETS = "Targets: 4 times as fast as the library with attacks in bf16, 1.3 times in float32."
QUICK = {"stages": ["apgd-ce", "square"], "iterations": 5, "queries": 50}


# --- memory ---


def estimate(place: Place) -> Iterator[Finding]:
    """Compare the memory that attacks take with doctor's estimate, an upper bound, and count trials a second."""
    width = WIDTH if place.is_gpu else 32
    asked = question(place, width, compile="never", batch_size=width)
    asked["threat"] |= {"attack": {"stages": list(STAGES), "iterations": 10, "queries": 50}}
    bound = _bound(portion(asked, STAGES[0], range(width)), width)
    rows = []
    for stage in STAGES:
        work = portion(asked, stage, range(width), target=3 if stage == "fab-t" else -1)
        results(work)  # finds the widths, once
        if place.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        started = perf_counter()
        results(work)
        wait(place.device)
        rows.append({"attack": stage, "images": width, "trials a second": width / (perf_counter() - started)})
        if place.is_gpu:
            peak = torch.cuda.max_memory_allocated()
            rows[-1] |= {"peak, MiB": peak / MIB, "estimate, MiB": bound / MIB}
            yield from expect(
                peak <= bound, f"{stage}: {peak / MIB:.0f} MiB, more than the estimate of {bound / MIB:.0f} MiB"
            )
    yield table(rows)
    if not place.is_gpu:
        yield needs_a_gpu(f"the peak of the memory (estimate: {bound / MIB:.1f} MiB)")


def _bound(work: Portion, width: int) -> int:
    """Return doctor's estimate of the bytes that attacks take on the device, a process's own aside."""
    with reproducible():  # as doctor measures: the session's networks are proved here, for the attacks after it too
        computation = Computation(work)
        few, _ = computation.batch(work.trials[:FEW])
        costs = measure(computation, work.trials[0].steering, few, width)
    return cost.memory(costs, min(width, costs.width))


# --- a board ---


def board(place: Place) -> Iterator[Finding]:
    """Price a board of 31 β in runs of AutoAttack, then one AutoAttack against the library on the same device."""
    if place.is_gpu and place.images is None:
        yield Skipped("a real board: needs --images")
        return
    n, one = (BOARD, ONE) if place.is_gpu else (8, 8)
    changes: dict[str, Any] = {"executor": {"kind": "local", "workers": 1}}
    asked = question(place, n, **changes | {"steering": {"beta": BETAS if place.is_gpu else [0.8, 0.9]}})
    if not place.is_gpu:
        asked["threat"] |= {"attack": QUICK}
    seconds, rows = _run(asked, place, "board")
    yield table([_priced(seconds, rows) | {"images": n, "β": len({row.beta for row in rows if row.beta is not None})}])
    asked |= {"steering": {"beta": [1.0]}, "dataset": asked["dataset"] | {"n": one}}
    yield from _against_library(asked, place)


def _run(asked: dict[str, Any], place: Place, name: str) -> tuple[float, list[LeaderboardRow]]:
    """Run a benchmark with an empty ledger: seconds, and the rows of its board."""
    started = perf_counter()
    made = run(parse_benchmark(asked), runs=place.home / name, offline=True)
    return perf_counter() - started, rows_of(made)


def _priced(seconds: float, rows: list[LeaderboardRow]) -> dict[str, Any]:
    best = min((row for row in rows if row.rank is not None), key=lambda row: row.rank or 0)
    runs = attack_runs(rows)
    return {"seconds": seconds, "AutoAttack runs": runs, "best β": best.beta, "robust": best.robust}


def _against_library(asked: dict[str, Any], place: Place) -> Iterator[Finding]:
    """Time one AutoAttack of the untouched network by the library and by the harness."""
    took, robust = _library(asked, place)
    rows = [{"way": "pyautoattack", "seconds": took, "times as fast": 1.0, "robust": robust}]
    for precision in ("bfloat16", "float32") if place.is_gpu else ("float32",):
        if place.is_late:
            yield Skipped(f"one AutoAttack in {precision}, as the time is up")
            break
        seconds, own = _run(asked | {"precision": precision}, place, precision)
        (baseline,) = (row for row in own if row.kind == "baseline")
        computing = baseline.seconds or float("nan")
        rows.append(
            {"way": f"harness, attacks in {precision}", "seconds": seconds, "times as fast": took / seconds}
            | {"robust": baseline.robust, "computing": computing, "times, computing": took / computing}
        )
    yield table(rows)
    if place.is_gpu:
        yield f"{TARGETS} Seconds are of whole runs; computing leaves out how they start."


def _library(asked: dict[str, Any], place: Place) -> tuple[float, float]:
    """Run pyautoattack on the benchmark's images: seconds, and robust accuracy."""
    parsed = parse_benchmark(asked)
    threat = parsed.threat
    assert isinstance(threat, Lp)
    network = model_session(parsed.models[0], place.device, True, False).loaded.body
    opened = parsed.dataset.open(offline=True)
    batch = opened.read(parsed.dataset.chosen(opened)).to(place.device)
    tool = configured(threat.attack, network, 10, threat.norm, threat.eps, place.device)
    started = perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        images, _ = tool.run_standard_evaluation(batch.x, batch.y, batch_size=len(batch))
    wait(place.device)
    took = perf_counter() - started
    with torch.no_grad():
        return took, float((network(images).argmax(1) == batch.y).float().mean())
