"""Does a run survive what happens to GPUs? Memory that runs short, and a device that is lost."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor

from gpu_sections import planted
from gpu_sections.section import Finding, Place, expect, needs_a_gpu, table
from gpu_sections.subjects import DEMO, portion, question, results
from harness.api.trial import Answer
from harness.api.work import Portion
from harness.config.benchmark import parse_benchmark
from harness.engine.session import model_session
from harness.leaderboard.row import LeaderboardRow, rows_of
from harness.models.loaded import Loaded
from harness.pipeline import run
from harness.util.device_errors import give_back_memory

SMALL = {"stages": ["apgd-ce"], "iterations": 20}
ROOM = 0.5
"""Share of the memory that the attack took for itself, that is left to it."""
FEW = 16
"""Images that fit under ``--pretend`` once memory is short."""
MAY_FLIP = 0.01
"""Share of the verdicts that may change on a GPU, where a narrower batch may round differently."""

Shorten = Callable[[Tensor, int], None]
"""Called with each batch and the number of those before it."""


def memory(place: Place) -> Iterator[Finding]:
    """Take memory away from the start, and in the middle: batches get narrower, and nothing else changes."""
    asked = question(place, 1000 if place.is_gpu else 96, compile="never")  # no graphs either, which keep memory
    asked["threat"] |= {"attack": SMALL}
    work = portion(asked, "apgd-ce", range(asked["dataset"]["n"]))
    rows = []
    expected, row, network = _attacked(work, lambda x, batches: None)
    rows.append({"memory": "enough"} | row)
    peak = torch.cuda.max_memory_allocated() if place.is_gpu else 0
    for when, share in (("short from the start", 0.0), ("short in the middle", 0.8)):
        after = int(share * len(network.widths))
        found, row, _ = _attacked(work, _shortening(place, peak, after))
        same = sum(answer == other for answer, other in zip(expected, found, strict=True))
        rows.append({"memory": when} | row | {"same verdicts": f"{same}/{len(expected)}"})
        flipped = len(expected) - same
        allowed = MAY_FLIP * len(expected) if place.is_gpu else 0
        yield from expect(flipped <= allowed, f"memory {when}: {flipped} of {len(expected)} verdicts changed")
        yield from expect(not row["flags"], f"memory {when}: expected no flag, found {row['flags']}")
        yield from expect(
            row["at the end"] < rows[0]["widest batch"], f"memory {when}: batches of {row['at the end']}, no narrower"
        )
    yield table(rows)
    if not place.is_gpu:
        yield needs_a_gpu("memory that the driver refuses (an injected torch.OutOfMemoryError stood in for it)")


def _attacked(work: Portion, shorten: Shorten) -> tuple[list[Answer], dict[str, Any], planted.Short]:
    """Run a portion where memory becomes short: its answers, how it went, and the network that counted."""
    with _planted(work, shorten) as network:
        found, flags = results(work)
    answers = [result.answer for result in found]
    fooled, last = sum(answer.value == 0 for answer in answers), max(network.widths[-len(network.widths) // 10 :])
    row = {"fooled": fooled, "flags": ";".join(flags), "widest batch": max(network.widths), "at the end": last}
    return answers, row, network


def _shortening(place: Place, peak: int, after: int) -> Shorten:
    """Return what makes memory short after so many batches."""

    def refuse(x: Tensor, batches: int) -> None:
        if batches >= after and len(x) > FEW:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def cap(x: Tensor, batches: int) -> None:
        if batches == after:
            held, total = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(0).total_memory
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction((held + ROOM * max(peak - held, 0)) / total)

    return cap if place.is_gpu else refuse


@contextmanager
def _planted(work: Portion, shorten: Shorten) -> Iterator[planted.Short]:
    """Put a network that becomes short of memory in place of the portion's own, in a session made anew."""
    on_gpu = work.task.device.startswith("cuda")
    model_session.cache_clear()
    give_back_memory()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    session = model_session(work.task.model, work.task.device, True, False)  # as the engine asks for it
    assert isinstance(session.loaded, Loaded)
    network = planted.Short(session.loaded.network, shorten).eval()
    session.loaded = replace(session.loaded, network=network)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that batches get narrower
            yield network
    finally:
        model_session.cache_clear()
        if on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
            give_back_memory()


def lost(place: Place) -> Iterator[Finding]:
    """Fail an assertion of the device in a worker: that model fails, and the next one's board is right."""
    asserting = {"kind": "checkpoint", "name": "asserting", "builder": "gpu_sections.planted:asserting"}
    asked = question(place, 16, dataset={"kind": "digits", "n": 16}, executor={"kind": "local", "workers": 1})
    asked["threat"] = {"kind": "Linf", "eps": 0.1, "attack": SMALL}
    with patch.dict(os.environ, {planted.MAIN: str(os.getpid())}):
        alone = run(parse_benchmark(asked | {"models": [DEMO]}), runs=place.home / "alone")
        both = run(parse_benchmark(asked | {"models": [asserting, DEMO]}), runs=place.home / "both")
    (status,) = both.loc[both["model"] == "asserting", "status"].tolist()
    own = [row for row in _rows(both) if row.model == DEMO["name"]]
    yield f"The model that asserts: {status}"
    yield from expect(status.startswith("failed"), f"a lost device: expected the model to fail, found {status}")
    yield from expect(own == _rows(alone), "a lost device: the other model's board is not the one that it has alone")
    if not place.is_gpu:
        yield needs_a_gpu("a failed assertion (an injected torch.AcceleratorError stood in for it)")


def _rows(board: pd.DataFrame) -> list[LeaderboardRow]:
    """Return the rows of a board without what depends on the machine's speed."""
    return [replace(row, seconds=None) for row in rows_of(board)]
