"""Faults of a benchmark's mapping: each is one line with the key, what was expected and what was found."""

from __future__ import annotations

from typing import Any

import pytest

from harness.config.benchmark import parse_benchmark
from harness.errors import SpecError

DEMO = {"kind": "demo", "name": "digits_plain_0to4"}
PROBE = {"kind": "probe", "backbone": DEMO, "train": {"kind": "digits"}}


def faults(**changes: Any) -> list[str]:
    mapping = {
        "name": "x",
        "models": [{"kind": "demo", "name": "digits_plain"}],
        "dataset": {"kind": "digits"},
        "threat": {"kind": "Linf", "eps": "8/255"},
        "steering": {"beta": 0.9},
    }
    with pytest.raises(SpecError) as error:
        parse_benchmark(mapping | changes)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": "soon"}, "seed: expected an integer, found 'soon'"),
        ({"seed": 1.5}, "seed: expected an integer, found 1.5"),
        ({"name": 3}, "name: expected text, found 3"),
        ({"device": "gpu"}, r"device: expected auto, cpu, cuda, or one GPU by its number, such as cuda:1, found 'gpu'"),
        ({"compile": "yes"}, "compile: expected 'auto', 'always' or 'never', found 'yes'"),
        ({"models": []}, "models: expected a list of at least 1, found []"),
        ({"models": DEMO}, f"models: expected a list, found {DEMO}"),
        ({"steering": 3}, "steering: expected a mapping, found 3"),
        ({"steering": {"beta": "high"}}, "steering.beta: expected a list or 'auto', found 'high'"),
        ({"steering": {"beta": [0.9, 1.1]}}, "steering.beta[1]: expected a number of at most 1, found 1.1"),
        ({"steering": {"beta": -0.5}}, "steering.beta[0]: expected a number of at least 0, found -0.5"),
        ({"dataset": {"kind": "digits", "n": 0}}, "dataset.n: expected a number above 0, found 0"),
        ({"search": {"kind": "best_first", "top": 0}}, "search.top: expected a number above 0, found 0"),
        ({"selection": {}}, "selection: expected a mapping with a kind, found {}"),
    ],
)
def test_a_fault_is_told_in_the_words_of_the_file(changes: dict[str, Any], line: str) -> None:
    assert faults(**changes) == [line]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"executor": {"kind": "local", "workers": 0}},
         "executor.workers: expected a number above 0 or 'auto', found 0"),
        ({"selection": {"kind": "cross_validation", "folds": 1}},
         "selection.folds: expected a number of at least 2, found 1"),
        ({"threat": {"kind": "Linf", "eps": 0.1, "attack": {"stages": []}}},
         "threat.attack.stages: expected a list of at least 1, found []"),
        ({"threat": {"kind": "Linf", "eps": 0.1, "attack": "x"}},
         "threat.attack: expected 'standard', 'plus' or 'rand' or a mapping, found 'x'"),
    ],
)  # fmt: skip
def test_the_branches_of_a_union_are_neither_in_the_key_nor_lines_of_their_own(
    changes: dict[str, Any], line: str
) -> None:
    assert faults(**changes) == [line]


def test_an_unknown_kind_of_procedure_names_those_there_are() -> None:
    (line,) = faults(selection={"kind": "x"})
    assert line.startswith("selection: expected one of the kinds 'cross_validation', 'holdout'")


def test_a_fault_in_a_part_of_a_part_has_its_whole_key() -> None:
    (line,) = faults(models=[PROBE | {"backbone": DEMO | {"colour": 1}}])
    assert line.startswith("models[0].backbone.colour: unknown key; known keys: name")
    (line,) = faults(models=[PROBE | {"train": {"kind": "digits", "n": 0}}])
    assert line == "models[0].train.n: expected a number above 0, found 0"


def test_each_fault_is_a_line() -> None:
    assert faults(seed=-1, batch_size=0) == [
        "seed: expected a number of at least 0, found -1",
        "batch_size: expected a number above 0 or 'auto', found 0",
    ]


def test_a_bad_entry_that_also_makes_its_list_too_short_is_told_once() -> None:
    assert faults(steering={"beta": [1.1]}) == ["steering.beta[0]: expected a number of at most 1, found 1.1"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"selection": {"kind": "holdout", "shar": 0.3}},
         "selection.shar: unknown key (did you mean 'share'?); known keys: kind, share"),
        ({"search": {"kind": "best_first", "tops": 3}},
         "search.tops: unknown key (did you mean 'top'?); known keys: kind, top"),
        ({"threat": {"kind": "Linf", "eps": 0.1, "attack": {"stages": ["square"], "querys": 3}}},
         "threat.attack.querys: unknown key (did you mean 'queries'?); known keys: stages, iterations, restarts, "
         "targets, queries"),
        ({"models": [PROBE | {"tuning": {"epoch": 3}}]},
         "models[0].tuning.epoch: unknown key (did you mean 'epochs'?); known keys: epochs, learning_rates, "
         "batch_size, share, seed"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_those_there_are_wherever_it_stands(changes: dict[str, Any], line: str) -> None:
    assert faults(**changes) == [line]


def test_a_rule_of_one_branch_of_a_union_is_told_in_its_words() -> None:
    (line,) = faults(threat={"kind": "Linf", "eps": 0.1, "attack": {"stages": ["square", "square"]}})
    assert line == "threat.attack: each attack may be named once, found {'stages': ['square', 'square']}"


def test_models_of_one_name_are_told_without_what_they_have_become() -> None:
    (line,) = faults(models=[DEMO, DEMO])
    assert line == "models: two models are called 'digits_plain_0to4'; give one of them another name"


@pytest.mark.parametrize("pair", [{"n": 3, "indices": [1]}, {"n": 3, "per_class": 1}, {"indices": [1], "per_class": 1}])
def test_images_are_chosen_in_one_way(pair: dict[str, Any]) -> None:
    (line,) = faults(dataset={"kind": "digits"} | pair)
    first, second = pair
    assert line.startswith(f"dataset: {first} and {second} each choose the images; give one of them alone, found ")


def test_many_faults_are_counted() -> None:
    lines = faults(steering={"beta": [2.0] * 50})
    assert len(lines) == 11
    assert lines[-1] == "the file: 40 more faults"
