"""Planted faults raise their own flag, and honest networks none."""

import pytest
import torch
from torch import nn

from harness.api.model import Model
from harness.config.benchmark import parse_benchmark
from harness.datasets.digits import Digits
from harness.models.demo import Demo
from harness.models.loaded import Loaded
from harness.pipeline import run
from harness.util.hashing import sha256_of_weights


class Rounded(torch.autograd.Function):
    """Quantised to steps of ¼: a gradient of zero everywhere."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class Planted(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.network, self.fault = Demo(name="digits_plain").load().network, fault

    def forward(self, x):
        if self.fault == "quantised":
            return self.network(Rounded.apply(x))
        logits = self.network(x)
        if self.fault == "saturated":
            return 1000 * logits
        if self.fault == "detached":
            return logits.detach() + 0 * logits.sum()
        if self.fault == "randomised":
            return logits + 0.3 * torch.randn_like(logits)
        return logits.softmax(1) if self.fault == "probabilities" else logits


class PlantedModel(Model):
    kind = "planted"
    fault: str

    @property
    def label(self):
        return self.fault

    def load(self, *, offline=False):
        network = Planted(self.fault).eval()
        return Loaded(network, sha256_of_weights(network))


def board(models, tmp_path, attack, n=40, beta=(0.8,), **more):
    return run(
        parse_benchmark({
            "name": "trust",
            "models": models,
            "dataset": Digits(n=n),
            "threat": {"kind": "Linf", "eps": 0.1, "attack": attack},
            "steering": {"beta": list(beta)},
            "executor": {"kind": "local", "workers": 1},
            "batch_size": n,
        } | more),
        runs=tmp_path,
    )  # fmt: skip


BRIEF = {"stages": ["apgd-ce", "apgd-t", "square"], "iterations": 10, "queries": 150}


@pytest.fixture
def in_process(monkeypatch):
    """Test-only models live in this module, which a worker process could not import."""
    from concurrent.futures import Future

    from harness.engine.evaluate import evaluate
    from harness.executors.local import Local

    def submit(self, cell):
        promise = Future()
        try:
            promise.set_result(evaluate(cell))
        except Exception as error:
            promise.set_exception(error)
        return promise

    monkeypatch.setattr(Local, "submit", submit)


@pytest.mark.parametrize(
    ("fault", "flags"),
    [
        ("quantised", {"zero_gradient", "large_eps", "square"}),
        ("saturated", {"zero_gradient"}),
        ("detached", {"zero_gradient", "large_eps", "square"}),
        ("randomised", {"randomized"}),
    ],
)
def test_a_planted_fault_raises_its_flag(fault, flags, tmp_path, in_process):
    table = board([PlantedModel(fault=fault)], tmp_path, BRIEF)
    assert table.status.isin(["ok", "selected"]).all(), table.status.tolist()
    baseline = table[(table.beta == 1) & (table.status == "ok")].iloc[0]
    assert flags <= set(baseline["flags"].split(";"))


def test_probabilities_are_refused_and_flagged(tmp_path, in_process):
    table = board([PlantedModel(fault="probabilities"), Demo(name="digits_plain")], tmp_path, BRIEF)
    row = table[table.model == "probabilities"].iloc[0]
    assert row.status.startswith("failed: it yields probabilities, not logits")
    assert row["flags"] == "probabilities"
    assert (table[table.model == "digits_plain"].status != "failed").all()


def test_honest_networks_raise_no_flag(tmp_path, in_process):
    table = board(
        [{"kind": "demo", "name": name} for name in ("digits_plain", "digits_robust")],
        tmp_path,
        BRIEF | {"iterations": 50},
    )
    assert set(table["flags"]) == {""}, table[["model", "beta", "flags"]]


def test_modules_only_is_flagged_partial(tmp_path, in_process):
    table = board([Demo(name="digits_plain")], tmp_path, BRIEF, steering={"beta": 0.8, "sites": "modules"})
    assert (table.steered < table.sites).all()
    assert table["flags"].str.contains("partial").all()


class Blind(nn.Module):
    """Hides its gradient when it is steered: what its own attack misses, the baseline's images still fool."""

    def __init__(self):
        super().__init__()
        self.network = Demo(name="digits_plain").load().network
        self.blind = False

    def forward(self, x):
        return self.network(Rounded.apply(4 * x) / 4 if self.blind else x)


class BlindLoaded(Loaded):
    def steered(self, steering, example=None):
        network = Blind().eval()
        network.blind = not steering.is_baseline
        return network

    def coverage(self, sites, example, family="relu"):
        return Loaded(self.network.network, "").coverage(sites, example)


class BlindModel(Model):
    kind = "blind"

    @property
    def label(self):
        return "blind"

    def load(self, *, offline=False):
        network = Blind().eval()
        return BlindLoaded(network, sha256_of_weights(network))


def test_replay_catches_an_attack_that_went_blind(tmp_path, in_process):
    """By brute force: every adversarial image of the baseline is shown to the steered network by hand."""
    from safetensors.torch import load_file

    table = board([BlindModel()], tmp_path, {"stages": ["apgd-ce"], "iterations": 20})
    steered = table[(table.beta == 0.8) & (table.status == "ok")].iloc[0]
    baseline = table[(table.beta == 1) & (table.status == "ok")].iloc[0]
    assert "replay" in steered["flags"].split(";")
    assert "replay" not in baseline["flags"].split(";")
    network = Blind().eval()
    network.blind = True
    batch = Digits(n=40).open().read(tuple(range(40)))
    fooled = set()
    for file in (tmp_path / "trust" / "adversaries").rglob("*.safetensors"):
        found = load_file(file)
        wrong = network(found["images"]).argmax(1) != batch.y[found["indices"]]
        fooled |= set(found["indices"][wrong].tolist())
    clean = network(batch.x).argmax(1) == batch.y
    expected = sum(bool(ok) and image not in fooled for image, ok in enumerate(clean))
    assert steered.robust_replay == pytest.approx(expected / 40)
    assert steered.robust_replay < steered.robust - 0.01
