"""Planted faults raise their own flag, and honest networks none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from helpers.ledgers import trials
from torch import Tensor, nn

from harness.api.model import Model, Scorable
from harness.api.records import Coverage, FamilyName, Sites, Steering
from harness.attacks.autoattack import SENTINEL
from harness.config.benchmark import parse_benchmark
from harness.datasets.digits import Digits
from harness.engine.images import digest
from harness.engine.ledger import Ledger
from harness.models.demo import Demo
from harness.models.loaded import Loaded
from harness.pipeline import run
from harness.util.hashing import sha256_of_weights


class Rounded(torch.autograd.Function):
    """Quantised to steps of ¼: a gradient of zero everywhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


def rounded(x: Tensor) -> Tensor:
    result: Tensor = Rounded.apply(x)
    return result


class Planted(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.network, self.fault = Demo(name="digits_plain").load().network, fault

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(rounded(x) if self.fault == "quantised" else x)
        if self.fault == "detached":
            return logits.detach() + 0 * logits.sum()
        if self.fault == "randomised":
            return logits + 0.3 * torch.randn_like(logits)
        if self.fault == "nondeterministic":
            return torch.zeros_like(logits).put_(torch.arange(logits.numel()).view_as(logits), logits)
        last = {"probabilities": lambda: logits.softmax(1), "sigmoid": logits.sigmoid, "no_gradient": logits.detach}
        return last.get(self.fault, lambda: logits)()


class PlantedModel(Model):
    kind: ClassVar[str] = "planted"
    fault: str

    @property
    def label(self) -> str:
        return self.fault

    def load(self, *, offline: bool = False) -> Scorable:
        network = Planted(self.fault).eval()
        return Loaded(network, sha256_of_weights(network))


def board(models: list[Any], runs: Path, attack: dict[str, Any], **changes: Any) -> pd.DataFrame:
    benchmark = {
        "name": "trust",
        "models": models,
        "dataset": Digits(n=40),
        "threat": {"kind": "Linf", "eps": 0.1, "attack": attack},
        "steering": {"beta": 0.8},
        "search": {"kind": "full"},
        "executor": {"kind": "inline"},  # the models of this module could not be imported by a worker
    } | changes
    return run(parse_benchmark(benchmark), runs=runs)


def row(table: pd.DataFrame, beta: float) -> pd.Series[Any]:
    return table[(table["beta"] == beta) & (table["status"] == "ok")].iloc[0]


def flags(row: pd.Series[Any]) -> set[str]:
    return set(str(row["flags"]).split(";"))


pytestmark = pytest.mark.usefixtures("installed")

BRIEF = {"stages": ["apgd-ce", "apgd-t", "square"], "iterations": 10, "queries": 150}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("quantised", {"zero_gradient", "large_eps", "square"}),
        ("detached", {"zero_gradient", "large_eps", "square"}),
        ("randomised", {"randomized"}),
        ("nondeterministic", {"nondeterministic"}),
    ],
)
def test_a_planted_fault_raises_its_flag(fault: str, expected: set[str], tmp_path: Path) -> None:
    table = board([PlantedModel(fault=fault)], tmp_path, BRIEF)
    assert table["status"].isin(["ok", "selected", "untrusted"]).all(), table["status"].tolist()
    assert expected <= flags(row(table, 1))


@pytest.mark.parametrize(("fault", "message"), [
    ("sigmoid", "probabilities, not logits: attacks on them see vanishing gradients; remove its sigmoid"),
    ("no_gradient", "its answers have no gradient with respect to the image, which these attacks need"),
])  # fmt: skip
def test_outputs_that_no_attack_can_be_trusted_on_fail_the_model_before_the_run(
    fault: str, message: str, tmp_path: Path
) -> None:
    table = board([PlantedModel(fault=fault)], tmp_path, BRIEF)
    assert message in table["status"].item()
    assert table["flags"].item() == ("probabilities" if fault == "sigmoid" else "")


def test_a_network_without_a_gradient_is_scored_where_no_attack_needs_one(tmp_path: Path) -> None:
    for changes in ({"threat": {"kind": "clean"}}, {"search": {"kind": "best_first"}}):
        table = board([PlantedModel(fault="no_gradient")], tmp_path, {"stages": ["square"], "queries": 2}, **changes)
        assert not table["status"].str.startswith("failed").any()


def test_probabilities_are_refused_and_flagged(tmp_path: Path) -> None:
    table = board([PlantedModel(fault="probabilities"), Demo(name="digits_plain")], tmp_path, BRIEF)
    refused = table[table["model"] == "probabilities"].iloc[0]
    assert str(refused["status"]).startswith("failed: ")
    assert "probabilities, not logits" in refused["status"]
    assert refused["flags"] == "probabilities"
    assert not table[table["model"] == "digits_plain"]["status"].str.startswith("failed").any()


def test_honest_networks_raise_no_flag(tmp_path: Path) -> None:
    models = [{"kind": "demo", "name": name} for name in ("digits_plain", "digits_robust")]
    table = board(models, tmp_path, BRIEF | {"iterations": 50})
    assert set(table["flags"]) == {""}, table[["model", "beta", "flags"]]


def test_modules_only_is_flagged_partial(tmp_path: Path) -> None:
    table = board([Demo(name="digits_plain")], tmp_path, BRIEF, steering={"beta": 0.8, "sites": "modules"})
    assert (table["steered"] < table["sites"]).all()
    assert table["flags"].str.contains("partial").all()


class Masked(nn.Module):
    """Hides its gradient when it is steered: what its own attack misses, the baseline's images still fool."""

    def __init__(self, hides: bool = False) -> None:
        super().__init__()
        self.network, self.hides = Demo(name="digits_plain").load().network, hides

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(rounded(4 * x) / 4 if self.hides else x)
        return logits


class MaskedLoaded(Loaded):
    def steered(self, steering: Steering, example: Tensor | None = None) -> nn.Module:
        return Masked(hides=not steering.is_baseline).eval()

    def coverage(self, sites: Sites, example: Tensor, family: FamilyName = "relu") -> Coverage:
        return Loaded(self.network.get_submodule("network"), "").coverage(sites, example)


class MaskedModel(Model):
    kind: ClassVar[str] = "masked"

    @property
    def label(self) -> str:
        return "masked"

    def load(self, *, offline: bool = False) -> Scorable:
        network = Masked().eval()
        return MaskedLoaded(network, sha256_of_weights(network))


def test_replay_catches_an_attack_that_went_blind(tmp_path: Path) -> None:
    """By brute force: every adversarial image of the baseline is shown to the steered network by hand."""
    table = board([MaskedModel()], tmp_path, {"stages": ["apgd-ce"], "iterations": 20})
    steered, baseline = row(table, 0.8), row(table, 1)
    assert "replay" in flags(steered)
    assert "replay" not in flags(baseline)
    network = Masked(hides=True).eval()
    batch = Digits(n=40).open().read(tuple(range(40)))
    numbers = {
        digest(x.numpy(), y): number for number, (x, y) in enumerate(zip(batch.x, batch.y.tolist(), strict=True))
    }
    known = trials(tmp_path / "trust")
    fooled: set[int] = set()
    with Ledger(tmp_path / "trust") as ledger:
        for (_, name, attempt), stored in known.items():
            if stored.offset >= 0 and SENTINEL not in attempt:  # these are no part of the score
                image = torch.from_numpy(ledger.adversarial(stored, (1, 8, 8)))[None]
                fooled |= {numbers[name]} if network(image).argmax(1) != batch.y[numbers[name]] else set()
    assert fooled
    clean = network(batch.x).argmax(1) == batch.y
    expected = sum(bool(ok) and image not in fooled for image, ok in enumerate(clean))
    assert steered["robust"] == pytest.approx(expected / 40)
    assert steered["robust_aa"] > steered["robust"] + 0.01
    assert baseline["robust_aa"] == baseline["robust"]
