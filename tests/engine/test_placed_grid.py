"""What β is to a network is measured where it is prepared, and ``beta: auto`` places its grid by that."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest
from helpers.networks import network_of
from torch import nn

from harness import run
from harness.config.benchmark import parse_benchmark
from harness.curvature.smoothing import AUTO
from harness.datasets.digits import Digits
from harness.errors import SpecError

pytestmark = pytest.mark.usefixtures("installed")

PLAIN = {"kind": "demo", "name": "digits_plain"}


def benchmark(**changes: Any) -> dict[str, Any]:
    return {
        "name": "placed", "models": [PLAIN], "dataset": {"kind": "digits", "n": 12}, "threat": {"kind": "clean"},
        "steering": {"beta": [0.9, 0.5], "sites": "modules"}, "executor": {"kind": "inline"}, "device": "cpu",
    } | changes  # fmt: skip


def registered_spread() -> float:
    """Return the median over the registered ReLUs of the standard deviation of their inputs on the first 8 images."""
    network, found = network_of("digits_plain"), list[float]()
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: found.append(float(inputs[0].double().std(correction=0))))
        for module in network.modules()
        if isinstance(module, nn.ReLU)
    ]
    network(Digits(n=8).open().read(tuple(range(8))).x)
    for hook in hooks:
        hook.remove()
    return median(found)


def test_each_row_says_what_its_beta_is_to_the_network(tmp_path: Path) -> None:
    table = run(parse_benchmark(benchmark()), runs=tmp_path)
    rows = table[table.status == "ok"]
    assert rows.smoothing.tolist() == pytest.approx(((1 - rows.beta) / registered_spread()).tolist())
    assert len(rows) == 3


def test_auto_places_a_grid_for_each_model(tmp_path: Path) -> None:
    models = [PLAIN, {"kind": "demo", "name": "digits_robust"}]
    chosen = parse_benchmark(benchmark())
    table = run(parse_benchmark(benchmark(models=models, steering={"beta": "auto"})), runs=tmp_path)
    steered = table[table["rank"].notna() & (table.method == "ct")]
    plain, robust = (own for _, own in steered.groupby("model"))
    assert len(set(plain.beta)) == len(set(robust.beta)) == AUTO
    assert set(plain.beta) != set(robust.beta)
    for own in (plain, robust):
        assert own.smoothing.min() == pytest.approx(0.01, rel=0.07)
    assert table.question.iloc[0] != run(chosen, runs=tmp_path).question.iloc[0]


def test_auto_is_for_relu_alone() -> None:
    with pytest.raises(SpecError, match=r"steering: .*beta: auto is made for ReLU; give the values of β"):
        parse_benchmark(benchmark(steering={"beta": "auto", "family": "smooth"}))
