"""A method of adapting a model that fails costs its own row: every other row is as if it had never been asked for."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import boards
from helpers.transfer import arrays, toy_board

from harness import pipeline
from harness.config.benchmark import parse_benchmark
from harness.errors import MethodError, ModelError
from harness.leaderboard import csv_file, outcomes, ranking
from harness.leaderboard.row import LeaderboardRow, failures_of
from harness.pipeline import NullListener
from harness.report.page import view

HOPELESS = {"share": 0.01}
"""Settings of the tuning under which no image is left to choose on, as is found in a worker."""


@pytest.fixture(autouse=True)
def _toys(tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays(tmp_path)
    monkeypatch.chdir(tmp_path)


class Listener(NullListener):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def failed(self, label: str, error: ModelError) -> None:
        self.heard.append(label)


def run(
    name: str, model: dict[str, Any], listener: Listener | None = None, **changes: Any
) -> tuple[list[LeaderboardRow], str]:
    """Run the board into a ledger of its own; return its rows, and its outcome file."""
    benchmark = parse_benchmark(toy_board(name=name, model=model, **changes))
    entries = pipeline.entries(benchmark, listener=listener)
    boards.write(ranking.board(entries), Path(f"{name}.csv"))
    return csv_file.read_rows(Path(f"{name}.csv")), outcomes.table(entries).to_csv()


def without(row: LeaderboardRow) -> LeaderboardRow:
    """Leave out the time, and what names the settings of the tuning."""
    return replace(row, seconds=None, train="")


ATTACKED = {"kind": "Linf", "eps": 0.05, "attack": {"stages": ["apgd-ce", "square"], "iterations": 5, "queries": 20}}


@pytest.mark.parametrize(
    "changes",
    [{"executor": {"kind": "inline"}, "threat": ATTACKED}, {"executor": {"kind": "local", "workers": 2}}],
    ids=["attacked, inline", "clean, two workers"],
)
def test_the_other_rows_are_as_if_it_had_not_been_asked_for(changes: dict[str, Any]) -> None:
    expected, expected_outcomes = run("without", {}, **changes)
    listener = Listener()
    methods = {"methods": ["fine_tuning", "lora-2"], "tuning": HOPELESS}
    found, found_outcomes = run("with", methods, listener, **changes)
    assert found_outcomes == expected_outcomes
    *rest, first, second = found
    assert list(map(without, rest)) == list(map(without, expected))
    assert {first.method, second.method} == {"fine_tuning", "lora-2"}
    assert all(row.kind == "failed" and row.failure.startswith("tuning.share: ") for row in (first, second))
    assert sorted(listener.heard) == ["toy fine_tuning", "toy lora-2"]


def test_one_that_works_is_scored_beside_one_that_fails() -> None:
    """What is said is the network's own error."""
    backbone = {"kind": "checkpoint", "builder": "helpers.transfer:irreversible"}
    rows, _ = run("b", {"backbone": backbone, "methods": ["fine_tuning"]})
    assert [row.failure for row in rows] == [""] * 5 + ["NotImplementedError: there is no way back"]


def test_the_board_is_shown_with_it() -> None:
    rows, _ = run("b", {"methods": ["fine_tuning"], "tuning": HOPELESS})
    assert list(failures_of(rows)) == ["toy fine_tuning"]
    assert view("b", rows, None, benchmark=False).lines


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(MethodError("why", "lora-2")))
    assert (str(error), error.method) == ("why", "lora-2")
