"""A board is replaced by an answer to the same question that has all its rows, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import tiny
from helpers.commands import Command, Run

from harness.leaderboard import csv_file

ATTACK = {"stages": ["apgd-ce"], "iterations": 3}
FAILING = [{"kind": "checkpoint", "builder": "tiny_networks:nan"}]
FILES = ("tiny.csv", "tiny.outcomes.csv", "tiny.question.yaml")


def kept(boards: Path) -> dict[str, bytes]:
    return {name: (boards / name).read_bytes() for name in FILES}


@pytest.fixture
def boards(here: Path, run: Run) -> Path:
    assert run(tiny.few_cells()).code == 0
    return here / "leaderboards"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"threat": {"kind": "Linf", "eps": 0.2, "attack": ATTACK}}, "eps: 0.1 there, 0.2 here"),
        ({"threat": {"kind": "Linf", "eps": 0.1, "attack": ATTACK | {"iterations": 1}}},
         "attack.iterations: 3 against 1"),
        ({"selection": {"kind": "none"}}, "selection or steering"),
        ({"steering": {"beta": [0.9]}}, "it has mixed β=0.5, which this run has not"),
        ({"models": [{"kind": "checkpoint", "builder": "tiny_networks:mixed", "name": "n"}]}, "it has mixed β="),
        ({"dataset": {"kind": "arrays", "path": "others.npz"}}, "data_sha256: "),
    ],
)  # fmt: skip
def test_another_question_gets_another_name(boards: Path, run: Run, changes: dict[str, Any], told: str) -> None:
    x, y = tiny.images()
    np.savez("others.npz", x=x[::-1].copy(), y=y[::-1].copy())
    before = kept(boards)
    ended = run(tiny.few_cells(**changes))
    assert ended.code == 0, ended.err
    assert "leaderboards/tiny.csv is left as it is: " in ended.err
    assert told in ended.err
    assert kept(boards) == before
    (other,) = (path for path in boards.glob("tiny-*.csv") if "outcomes" not in path.name)
    assert f"written: leaderboards/{other.name}" in ended.err
    assert csv_file.read_rows(other)[0].question in other.name
    again = run(tiny.few_cells(**changes))
    assert f"written: leaderboards/{other.name}" in again.err, "the same question has the same name"


def test_the_same_question_with_more_steerings_replaces_it(boards: Path, run: Run) -> None:
    ended = run(tiny.few_cells(steering={"beta": [0.5, 0.9]}))
    assert "left as it is" not in ended.err
    assert {row.beta for row in csv_file.read_rows(boards / "tiny.csv") if row.kind != "selected"} == {0.5, 0.9, 1.0}


def test_a_run_that_failed_wholly_leaves_the_old_files(boards: Path, run: Run) -> None:
    before = kept(boards)
    ended = run(tiny.few_cells(models=FAILING))
    assert ended.code == 2
    assert "left as it is: no model was scored" in ended.err
    assert kept(boards) == before
    assert not list(boards.glob("tiny-*"))


def test_a_run_that_failed_in_part_leaves_what_it_would_lose(boards: Path, run: Run) -> None:
    before = kept(boards)
    models = [*FAILING, {"kind": "checkpoint", "builder": "tiny_networks:quadrants"}]
    assert run(tiny.few_cells(models=models)).code == 1
    assert kept(boards) == before


def test_a_file_that_is_no_board_is_not_replaced(here: Path, run: Run) -> None:
    (here / "notes.csv").write_text("mine\n")
    ended = run(tiny.few_cells(), "--out", "notes.csv")
    assert (here / "notes.csv").read_text() == "mine\n"
    assert "no leaderboard of this version" in ended.err


def test_compare_and_check_name_what_makes_two_boards_answer_different_questions(
    boards: Path, run: Run, command: Command
) -> None:
    weaker = tiny.few_cells(threat={"kind": "Linf", "eps": 0.1, "attack": ATTACK | {"iterations": 1}})
    run(weaker, "--out", "weaker.csv")
    compared = command("compare", "weaker.csv", "leaderboards/tiny.csv")
    assert "attack.iterations: 1 against 3: robust accuracies are not compared" in " ".join(compared.out.split())
    refused = command("check", "tiny.yaml", "--against", "leaderboards/tiny.csv")
    assert refused.code == 2
    assert "do not answer the same question" in refused.err
    shown = command("show", "weaker.csv", "leaderboards/tiny.csv")
    assert "attack.iterations 1" in shown.out
    assert "attack.iterations 3" in shown.out


def test_the_question_lies_beside_the_board(boards: Path) -> None:
    content = yaml.safe_load((boards / "tiny.question.yaml").read_text())
    assert content["question"] == csv_file.read_rows(boards / "tiny.csv")[0].question
    assert content["benchmark"]["threat"]["attack"]["iterations"] == 3
    assert {"torch", "ct_harness", "git"} <= content["made_with"].keys()
