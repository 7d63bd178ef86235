"""The benchmark file: what is right is parsed to exact values, and the schema says the same as the parser."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helpers.tiny import mapping
from hypothesis import given
from hypothesis import strategies as st

from harness.api import registry
from harness.config.benchmark import load_benchmark, parse_benchmark
from harness.config.schema import schema
from harness.errors import SpecError
from harness.threats.lp import L1, L2, Linf, Lp

BENCHMARKS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.yaml"))


def good(**changes: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "models": [{"kind": "demo", "name": "digits_plain"}],
        "dataset": {"kind": "digits"},
        "threat": {"kind": "Linf", "eps": "8/255"},
        "steering": {"beta": 0.9},
    } | changes


# --- values ---


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("0.5", 0.5), ("1e-3", 1e-3), (0.03, 0.03), (1, 1.0), ("1/1", 1.0)],
)
def test_eps_is_parsed(text: Any, value: float) -> None:
    assert Linf(eps=text).eps == value


@pytest.mark.parametrize("bad", ["8/0", "a", "8//255", "", 0, -0.1, "-8/255", 1.5, 8, float("nan"), float("inf")])
def test_eps_that_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(SpecError, match=r"^threat\.eps: .*found"):
        parse_benchmark(good(threat={"kind": "Linf", "eps": bad}))


def test_only_linf_ends_at_one() -> None:
    assert L2(eps=3.0).eps == 3.0
    assert L1(eps=12).eps == 12.0


def test_the_papers_grid_is_thirty_exact_decimals() -> None:
    beta = parse_benchmark(good(steering={"beta": {"from": 0.70, "to": 0.99, "step": 0.01}})).steering.beta
    assert beta == tuple(float(f"0.{i}") for i in range(70, 100))
    assert len(beta) == 30
    assert all(len(repr(value)) <= 4 for value in beta)


@given(st.integers(1, 500))
def test_a_step_that_is_a_fraction_ends_at_the_end(parts: int) -> None:
    """Such as 1/3, of which three are less than 1 in floats, and 1/11, of which eleven are more."""
    beta = parse_benchmark(good(steering={"beta": {"from": 0, "to": 1, "step": f"1/{parts}"}})).steering.beta
    assert len(beta) == parts + 1
    assert beta == pytest.approx([i / parts for i in range(parts + 1)], abs=1e-12)
    assert (beta[0], beta[-1]) == (0, 1)


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 300))
def test_a_spread_includes_both_ends_and_rounds_nothing(a: int, b: int, step: int) -> None:
    low, high = sorted((a, b))
    spread = {"from": low / 1000, "to": high / 1000, "step": step / 1000}
    expected = tuple(float(Decimal(i) / 1000) for i in range(low, high + 1, step))
    assert parse_benchmark(good(steering={"beta": spread})).steering.beta == expected


def test_a_number_is_a_grid_of_one() -> None:
    steering = parse_benchmark(good(steering={"beta": 0.9, "c": [0, 1]})).steering
    assert (steering.beta, steering.c, steering.sites) == ((0.9,), (0.0, 1.0), "all")


def test_what_may_be_left_out() -> None:
    benchmark = parse_benchmark(good())
    assert (benchmark.seed, benchmark.batch_size, benchmark.device) == (0, "auto", "auto")
    assert (benchmark.executor.kind, benchmark.steering.c, benchmark.dataset.n) == ("local", (0.5,), None)
    assert isinstance(benchmark.threat, Linf)
    assert benchmark.threat.attack == "standard"


@pytest.mark.parametrize(
    ("kind", "dataset", "eps"),
    [
        ("Linf", "cifar10", 8 / 255), ("Linf", "cifar100", 8 / 255), ("L2", "cifar10", 0.5), ("L2", "cifar100", 0.5),
    ],
)  # fmt: skip
def test_eps_is_robustbenchs_where_it_has_one(kind: str, dataset: str, eps: float) -> None:
    for fields, expected in (({}, eps), ({"eps": 0.25}, 0.25)):
        threat = parse_benchmark(good(threat={"kind": kind} | fields, dataset={"kind": dataset})).threat
        assert isinstance(threat, Lp)
        assert threat.eps == expected


def test_eps_on_imagenet_is_robustbenchs() -> None:
    assert Linf(**Linf.defaults("imagenet")).eps == 4 / 255
    assert L2(**L2.defaults("imagenet")).eps == 3.0
    assert L1.defaults("imagenet") == {}


# --- the file ---


def test_the_name_is_the_files_unless_it_is_given(tmp_path: Path) -> None:
    fields = good()
    del fields["name"]
    (tmp_path / "my_question.yaml").write_text(yaml.safe_dump(fields))
    assert load_benchmark(tmp_path / "my_question.yaml").name == "my_question"
    assert load_benchmark(tmp_path / "my_question.yaml", ["name=other"]).name == "other"


def test_overrides_set_values_deep_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(good()))
    benchmark = load_benchmark(
        tmp_path / "x.yaml",
        [
            "dataset.n=7", "models.0.name=digits_robust", "steering.beta=[0.5, 0.7]", "threat.eps=1/255",
            "executor.kind=local", "executor.workers=2", "threat.attack.stages=[square]", "seed=3",
        ],
    )  # fmt: skip
    assert benchmark.dataset.n == 7
    assert benchmark.models[0].label == "digits_robust"
    assert benchmark.steering.beta == (0.5, 0.7)
    assert isinstance(benchmark.threat, Linf)
    assert (benchmark.threat.eps, benchmark.threat.stages) == (1 / 255, ("square",))
    assert (benchmark.seed, benchmark.executor.model_dump()["workers"]) == (3, 2)


def test_an_override_may_replace_a_whole_part(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(good()))
    benchmark = load_benchmark(
        tmp_path / "x.yaml", ["models=[{kind: demo, name: digits_robust}]", "threat={kind: L2, eps: 0.5}"]
    )
    assert [model.label for model in benchmark.models] == ["digits_robust"]
    assert benchmark.threat.kind == "L2"


def test_a_benchmark_never_changes() -> None:
    benchmark = parse_benchmark(good())
    for part, key in (
        (benchmark, "seed"), (benchmark.models[0], "name"), (benchmark.threat, "eps"), (benchmark.steering, "beta"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, key, 1)


# --- the schema ---


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_our_benchmarks_parse_and_fit_the_schema(path: Path) -> None:
    load_benchmark(path)
    jsonschema.validate(yaml.safe_load(path.read_text()), schema())


@pytest.mark.parametrize(
    "path", [path for path in BENCHMARKS if path.stem.startswith("paper_")], ids=lambda path: path.stem
)
def test_those_of_the_paper_ask_the_same_under_either_protocol(path: Path) -> None:
    """And each says in its head how: by what is set here, and with a board of its own."""
    said = f"--set protocol=pixel --set name={path.stem}_pixel"
    assert f"#   ct-harness run benchmarks/{path.name} {said}\n" in path.read_text(encoding="utf-8")
    paper, pixel = load_benchmark(path), load_benchmark(path, said.replace("--set ", "").split())
    assert (paper.protocol, paper.selection.kind, paper.steering.sites) == ("paper", "none", "modules")
    assert (pixel.protocol, pixel.selection.kind, pixel.steering.sites) == ("pixel", "cross_validation", "all")
    assert (paper.name, pixel.name) == (path.stem, f"{path.stem}_pixel")
    assert paper.steering.beta == pixel.steering.beta == tuple(n / 100 for n in range(70, 100))
    assert paper.normalised == (paper.threat.kind != "corruptions")
    for part in ("models", "dataset", "threat", "seed", "batch_size"):
        assert getattr(paper, part) == getattr(pixel, part)


def test_there_are_benchmarks() -> None:
    assert BENCHMARKS
    assert len([path for path in BENCHMARKS if path.stem.startswith("paper_")]) == 10


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    text = json.dumps(schema())
    for group in registry.GROUPS:
        assert all(f'{{"const": "{kind}"}}' in text for kind in registry.registered(group))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"steering": {"beta": {"from": 0.7, "to": 0.99, "step": 0.01}, "c": 0.25, "sites": "modules"}},
        {"steering": {"beta": "auto"}},
        {"steering": {"beta": [0, 1]}, "executor": {"kind": "local", "workers": "auto"}},
        {"threat": {"kind": "L2", "eps": 0.5, "attack": {"stages": ["square"], "queries": 5}}},
        {"threat": {"kind": "Linf"}, "dataset": {"kind": "cifar10", "n": 5}},
        {"dataset": {"kind": "digits", "indices": [3, 1]}, "seed": 3, "batch_size": 2, "device": "cuda:1"},
        {"models": [{"kind": "checkpoint", "builder": "a.b:c", "mean": [0.5], "std": [1]}]},
    ],
)
def test_what_is_parsed_fits_the_schema(change: dict[str, Any]) -> None:
    parse_benchmark(good(**change))
    jsonschema.validate(good(**change), schema())


STRUCTURAL = {
    "unknown key": {"treat": {}},
    "unknown key of a part": {"dataset": {"kind": "digits", "sample": 3}},
    "unknown key of steering": {"steering": {"beta": 0.9, "gamma": 1}},
    "unknown key of an attack": {"threat": {"kind": "Linf", "eps": 0.1, "attack": {"stages": ["square"], "steps": 1}}},
    "wrong type": {"seed": "soon"},
    "wrong type of a part": {"dataset": "digits"},
    "models no list": {"models": {"kind": "demo", "name": "digits_plain"}},
    "no models": {"models": []},
    "beta above 1": {"steering": {"beta": [0.9, 1.1]}},
    "beta below 0": {"steering": {"beta": -0.1}},
    "beta a word": {"steering": {"beta": "high"}},
    "c above 1": {"steering": {"beta": 0.9, "c": 2}},
    "empty grid": {"steering": {"beta": []}},
    "spread without step": {"steering": {"beta": {"from": 0.7, "to": 0.9}}},
    "spread above 1": {"steering": {"beta": {"from": 0.7, "to": 1.9, "step": 0.1}}},
    "no beta": {"steering": {"c": 0.5}},
    "sites": {"steering": {"beta": 0.9, "sites": "some"}},
    "unknown kind": {"threat": {"kind": "Lfin", "eps": 0.1}},
    "no kind": {"threat": {"eps": 0.1}},
    "missing key": {"models": [{"kind": "demo"}]},
    "unknown name": {"models": [{"kind": "demo", "name": "digits"}]},
    "unknown stage": {"threat": {"kind": "Linf", "eps": 0.1, "attack": {"stages": ["pgd"]}}},
    "no stages": {"threat": {"kind": "Linf", "eps": 0.1, "attack": {"stages": []}}},
    "n of nought": {"dataset": {"kind": "digits", "n": 0}},
    "negative index": {"dataset": {"kind": "digits", "indices": [-1]}},
    "batch of nought": {"batch_size": 0},
    "batch of some": {"batch_size": "some"},
    "half a batch": {"batch_size": 2.5},
    "an option that is gone": {"replay_first": True},
    "negative seed": {"seed": -1},
    "device": {"device": "gpu"},
    "workers": {"executor": {"kind": "local", "workers": 0}},
    "name": {"name": "a/b"},
}


@pytest.mark.parametrize("batch_size", ["auto", 1, 7, 4096])
def test_a_batch_is_a_number_or_measured(batch_size: int | str) -> None:
    assert parse_benchmark(good(batch_size=batch_size)).batch_size == batch_size


@pytest.mark.parametrize("change", STRUCTURAL.values(), ids=STRUCTURAL.keys())
def test_a_fault_of_structure_is_refused_by_parser_and_schema_alike(change: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        parse_benchmark(good(**change))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(good(**change), schema())


@pytest.mark.parametrize("key", ["models", "dataset", "threat", "steering"])
def test_what_may_not_be_left_out(key: str) -> None:
    fields = good()
    del fields[key]
    with pytest.raises(SpecError, match=f"^{key}: missing"):
        parse_benchmark(fields)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(fields, schema())


@pytest.mark.usefixtures("installed")
def test_a_third_partys_kinds_are_parsed_and_in_the_schema() -> None:
    benchmark = mapping(threat={"kind": "dim"})
    assert parse_benchmark({"name": "x"} | benchmark).threat.stages == ("dim-1", "dim-2")
    jsonschema.validate(benchmark, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(mapping(threat={"kind": "dim", "eps": 0.1}), schema())
