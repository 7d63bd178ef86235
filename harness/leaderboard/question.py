"""The question that a board answers: threat, attack, data, selection and steering, with every parameter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from harness.util.hashing import canonical, sha256
from harness.util.source_code import code_of_classes

if TYPE_CHECKING:
    from harness.api.part import Part
    from harness.config.benchmark import Benchmark

SHORT = 12
"""Hexadecimal digits of a hash on a board."""


def columns(benchmark: Benchmark) -> dict[str, str]:
    """Return the columns ``question`` and ``parameters`` of every row.

    Models, β and c are left out, since each row names its own, and so is what changes no result; but not that the grid
    was placed by the pre-activations of each model.
    """
    threat = _described(benchmark.threat)
    if code := code_of_classes(type(benchmark.threat)):
        threat["code"] = code[:SHORT]
    placed = {"beta": "auto"} if benchmark.steering.beta == "auto" else {}
    asked = {
        "dataset": benchmark.dataset.identity() | benchmark.dataset.own_parameters(),
        "threat": threat,
        "steering": {"sites": benchmark.steering.sites, "family": benchmark.steering.family} | placed,
        **benchmark.model_dump(mode="json", include={"protocol", "precision", "seed", "selection"}),
    }
    return {"question": sha256(asked)[:SHORT], "parameters": canonical(threat)}


def document(benchmark: Benchmark, made_with: Mapping[str, str]) -> str:
    """Return the YAML that lies beside a board: the benchmark with every key resolved, and what computed it.

    The code of a third party's data set is told here alone, since the images that it gives are hashed in every row.
    """
    code = {key: code_of_classes(type(getattr(benchmark, key)))[:SHORT] for key in ("dataset", "threat")}
    parts = {key: _described(getattr(benchmark, key)) for key in ("dataset", "threat", "executor")}
    resolved = benchmark.model_dump(mode="json", exclude={"models", *parts})
    models = [_described(model) for model in benchmark.models]
    content = {
        "question": columns(benchmark)["question"],
        "benchmark": {"name": resolved.pop("name"), "models": models, **parts, **resolved},
        "made_with": dict(made_with) | {f"code of the {key}": found for key, found in code.items() if found},
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def differences(first: str, second: str) -> list[str]:
    """Return in what two values of the column ``parameters`` differ, key by key: ``attack.iterations: 1 against 5``."""
    a, b = (dict(_leaves(json.loads(text), "")) if text else {} for text in (first, second))
    return [
        f"{key}: {a.get(key, 'nothing')} against {b.get(key, 'nothing')}"
        for key in {**a, **b}
        if a.get(key) != b.get(key)
    ]


def told(parameters: str) -> str:
    """Return a value of the column ``parameters`` in words, without what other columns say: ``attack.iterations 5``."""
    leaves = _leaves(json.loads(parameters), "") if parameters else ()
    return ", ".join(f"{key} {value}" for key, value in leaves if key not in ("kind", "eps", "attack", "attack.stages"))


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, f"{where}.{key}" if where else str(key))
    else:
        yield where, value


def _described(part: Part) -> dict[str, Any]:
    """Return a part as its mapping in the YAML would have it, with every default."""
    return {"kind": part.kind} | part.model_dump(mode="json")
