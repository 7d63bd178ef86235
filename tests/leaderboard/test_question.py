"""The question of a board: every parameter shows in its columns, and what changes no result does not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from helpers import tiny

from harness.config.benchmark import parse_benchmark
from harness.datasets.arrays import Arrays
from harness.leaderboard.question import columns, differences, document, told

pytestmark = pytest.mark.usefixtures("installed")


def asked(**changes: Any) -> dict[str, str]:
    return columns(parse_benchmark({"name": "tiny"} | tiny.mapping() | changes))


def attack(**changes: Any) -> dict[str, Any]:
    return {"kind": "Linf", "eps": 0.1, "attack": tiny.ATTACK | changes}


CHANGES: dict[str, dict[str, Any]] = {
    "eps": {"threat": attack() | {"eps": 0.2}},
    "steps": {"threat": attack(iterations=4)},
    "queries": {"threat": attack(queries=6)},
    "a default spelt out otherwise": {"threat": attack(restarts=2)},
    "images": {"dataset": {"kind": "arrays", "path": "images.npz", "n": 3}},
    "selection": {"selection": {"kind": "none"}},
    "seed": {"seed": 1},
    "sites": {"steering": {"beta": [0.9, 0.5], "sites": "modules"}},
    "a grid placed by the model": {"steering": {"beta": "auto"}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_parameter_is_part_of_the_question(what: str) -> None:
    assert asked(**CHANGES[what])["question"] != asked()["question"]
    assert (asked(**CHANGES[what])["parameters"] != asked()["parameters"]) == ("threat" in CHANGES[what])


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"}, {"batch_size": 3}, {"executor": {"kind": "local"}}, {"steering": {"beta": [0.7]}},
        {"search": {"kind": "full"}}, {"threat": attack(restarts=1)},
        {"models": [{"kind": "demo", "name": "digits_plain"}]},
    ],
)  # fmt: skip
def test_what_rows_say_themselves_and_what_changes_no_result_is_not(changes: dict[str, Any]) -> None:
    assert asked(**changes) == asked()


def test_parameters_differ_key_by_key() -> None:
    one, other = asked()["parameters"], asked(threat=attack(iterations=5, restarts=2))["parameters"]
    assert differences(one, other) == ["attack.iterations: 3 against 5", "attack.restarts: 1 against 2"]
    assert differences(one, one) == differences("", "") == []
    assert "attack.iterations 3" in told(one)
    assert "eps" not in told(one)


def test_the_document_is_the_benchmark_with_every_key_and_gives_it_back() -> None:
    benchmark = parse_benchmark({"name": "tiny"} | tiny.mapping())
    content = yaml.safe_load(document(benchmark, {"torch": "2"}))
    assert content["question"] == columns(benchmark)["question"]
    assert content["made_with"] == {"torch": "2"}
    assert content["benchmark"]["threat"]["attack"]["restarts"] == 1
    assert parse_benchmark(content["benchmark"]) == benchmark
    assert json.loads(columns(benchmark)["parameters"]) == content["benchmark"]["threat"]


def test_the_document_says_by_which_code_a_third_partys_threat_and_data_were_made() -> None:
    benchmark = parse_benchmark({"name": "tiny"} | tiny.mapping(dataset={"kind": "normalised"}, threat={"kind": "dim"}))
    made_with = yaml.safe_load(document(benchmark, {}))["made_with"]
    assert made_with == dict.fromkeys(["code of the dataset", "code of the threat"], made_with["code of the dataset"])


def test_a_parameter_that_a_data_set_adds_and_leaves_out_of_its_identity_is_part_of_the_question() -> None:
    class Own(Arrays):
        sigma: float = 0

        def identity(self) -> dict[str, Any]:
            return {"kind": self.kind}

    benchmark = parse_benchmark({"name": "tiny"} | tiny.mapping())
    one, other = (benchmark.model_copy(update={"dataset": Own(path="images.npz", sigma=sigma)}) for sigma in (0.0, 1.0))
    assert columns(one)["question"] != columns(other)["question"]
