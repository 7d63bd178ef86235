"""Recognition: which of a ledger's results are of this network, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from helpers.scored import task_of

from harness.api.records import BASELINE, Steering
from harness.api.work import Task
from harness.datasets.digits import Digits
from harness.engine.recognition import OTHER_ANSWERS, OTHER_CODE, OTHER_THREAT, recognised
from harness.models.demo import Demo
from harness.threats.lp import Linf

ANSWERS = ((1.0, -2.0), (0.5, 3.0))
ROUNDED = ((1.0001, -2.0), (0.5, 3.0))
OTHER = ((1.0, 2.0), (0.5, 3.0))


@pytest.fixture(scope="module")
def task() -> Task:
    plain = task_of(Demo(name="digits_plain"), Digits(n=2), Linf(eps=0.1))
    return replace(plain, network="network", answers=ANSWERS, code="threat")


def contexts(*tasks: Task) -> list[dict[str, Any]]:
    return [task.identity(Steering(beta)) for task in tasks for beta in (0.5, 1.0)]


def test_an_empty_ledger_has_nothing_stale(task: Task) -> None:
    assert recognised(task, []) == (task, "")


def test_the_answers_that_the_ledger_has_are_taken_over_where_they_differ_by_rounding(task: Task) -> None:
    held = replace(task, answers=ROUNDED)
    assert recognised(task, contexts(held)) == (held, "")


def test_of_several_the_network_finds_its_own(task: Task) -> None:
    held = contexts(replace(task, answers=ROUNDED), replace(task, answers=OTHER))
    assert recognised(task, held) == (replace(task, answers=ROUNDED), "")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"answers": OTHER}, OTHER_ANSWERS),
        ({"answers": OTHER, "network": "edited"}, OTHER_ANSWERS),
        ({"network": "edited"}, OTHER_CODE),
        ({"code": "edited"}, OTHER_THREAT),
        ({"weights_sha256": "others"}, ""),
        ({"seed": 1}, ""),
        ({"threat": Linf(eps=0.2)}, ""),
    ],
)
def test_what_is_stale_is_told_and_another_question_is_not(task: Task, changes: dict[str, Any], why: str) -> None:
    asked = replace(task, **changes)
    assert recognised(asked, contexts(task)) == (asked, why)
    assert recognised(asked, contexts(task, asked)) == (asked, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"weights_sha256": "others"}, {"network": "edited"}, {"answers": OTHER}, {"code": "edited"}, {"seed": 1},
        {"threat": Linf(eps=0.2)}, {"model": Demo(name="digits_robust")}, {"normalised": True}, {"precision": "tf32"},
        {"recipe": "logistic"},
    ],
)  # fmt: skip
def test_whatever_a_number_depends_on_is_part_of_its_identity(task: Task, changes: dict[str, Any]) -> None:
    assert replace(task, **changes).identity(BASELINE) != task.identity(BASELINE)


def test_a_parameter_that_a_threat_adds_and_leaves_out_of_its_identity_is_part_of_it(task: Task) -> None:
    class Shift(Linf):
        sigma: float

    one, other = (replace(task, threat=Shift(eps=0.1, sigma=sigma)) for sigma in (0.5, 1.0))
    assert one.threat.identity() == other.threat.identity()
    assert one.identity(BASELINE) != other.identity(BASELINE)


def test_a_network_that_answers_by_chance_is_known_by_its_code(task: Task) -> None:
    chance = replace(task, answers=())
    assert recognised(chance, contexts(chance)) == (chance, "")
