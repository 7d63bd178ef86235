"""A third party's model, data set, threat and executor get all that the built-in ones get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import pipeline
from harness.checks.cost import Costs, seconds
from harness.checks.doctor import doctor
from harness.checks.findings import Finding
from harness.config.benchmark import Benchmark, parse_benchmark
from harness.testing import DatasetContract, ExecutorContract, ModelContract, ThreatContract


def benchmark(**changes: Any) -> Benchmark:
    return parse_benchmark({
        "name": "strangers",
        "models": [{"kind": "quadrants"}],
        "dataset": {"kind": "bright_quadrants"},
        "threat": {"kind": "one_step", "eps": 0.1},
        "steering": {"beta": [0.9, 0.5]},
        "executor": {"kind": "at_once"},
        "device": "cpu",
    } | changes)  # fmt: skip


def findings(asked: Benchmark) -> dict[str, Finding]:
    return {finding.check: finding for finding in doctor(asked, runs=Path("runs"), out=[Path("leaderboards/x.csv")])}


@pytest.mark.usefixtures("here")
def test_doctor_checks_all_four_and_estimates_what_they_take() -> None:
    found = findings(benchmark())
    assert {name for name, finding in found.items() if finding.level != "ok"} <= {"grid"}
    assert found.keys() >= {"device", "data", "weights", "clean", "steering", "attack", "disk", "memory", "duration"}
    assert "3 workers" in found["device"].text
    assert "24 of 24 images" in found["clean"].text
    assert "published: 100.00 %" in found["clean"].text
    assert "fgsm" in found["attack"].text
    assert found["duration"].text.startswith("at most about")


@pytest.mark.usefixtures("here")
def test_doctor_holds_a_third_party_model_against_its_own_published_figure() -> None:
    found = findings(benchmark(models=[{"kind": "quadrants", "published_clean": 0.5}]))
    assert found["clean"].level == "warning"
    assert "published: 50.00 %" in found["clean"].text


@pytest.mark.usefixtures("here")
def test_the_cost_estimate_counts_the_passes_that_the_threat_names() -> None:
    costs = Costs(
        width=8,
        forward=1,
        gradient=10,
        attacks={},
        own_step=100,
        stage=0,
        working=0,
        kept=0,
        image=0,
        weights=0,
        classes=4,
    )
    assert seconds(benchmark().threat, costs) == 1 + 10


@pytest.mark.usefixtures("here")
def test_doctor_says_why_a_third_party_threat_cannot_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    import complete_parts

    monkeypatch.setattr(complete_parts.OneStep, "smoke_test", refuse)
    monkeypatch.setattr(type(benchmark().executor), "in_process", True)  # where the patch is
    found = findings(benchmark())
    assert found["attack"].level == "problem"
    assert "it has no edges" in found["attack"].text
    assert found["attack"].remedy == "give it some"


def refuse(*_: object) -> None:
    from harness.errors import ModelError

    raise ModelError("it has no edges; give it some")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("protocol", ["pixel", "paper"])
def test_a_run_scores_them_under_either_protocol(protocol: str) -> None:
    """At β = 1 the network is linear: an image is fooled if its quadrant is brighter by less than twice ε."""
    from complete_parts import GAPS

    board = pipeline.run(benchmark(protocol=protocol), runs="runs")
    assert set(board["attack"]) == {"fgsm"}
    [baseline] = board[board["method"] == "untouched"].to_dict("records")
    assert baseline["clean"] == 1
    if protocol == "pixel":
        assert baseline["robust"] == (GAPS > 2 * 0.1).mean()
    else:  # the box [0, 1] cuts off what is darker than mid-grey; of equal logits the first counts
        brighter = 4 * (GAPS - 0.2) - 0.1 > 0
        assert baseline["robust"] == (brighter | (np.arange(24) % 4 == 0)).mean()
        assert "not_comparable" in baseline["flags"]


@pytest.mark.usefixtures("installed")
class TestQuadrants(ModelContract):
    shape = (1, 8, 8)

    @pytest.fixture
    def part(self, installed: Path) -> Any:
        import complete_parts

        return complete_parts.Quadrants()


@pytest.mark.usefixtures("installed")
class TestBrightQuadrants(DatasetContract):
    @pytest.fixture
    def part(self, installed: Path) -> Any:
        import complete_parts

        return complete_parts.BrightQuadrants()


@pytest.mark.usefixtures("installed")
class TestOneStep(ThreatContract):
    @pytest.fixture
    def part(self, installed: Path) -> Any:
        import complete_parts

        return complete_parts.OneStep()


@pytest.mark.usefixtures("installed")
class TestAtOnce(ExecutorContract):
    @pytest.fixture
    def part(self, installed: Path) -> Any:
        import complete_parts

        return complete_parts.AtOnce()
