"""Transferred networks: no stale result is reused, and nothing is scored that should not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.api.records import BASELINE, Steering
from harness.api.registry import build
from harness.api.work import Task
from harness.checks.doctor import doctor
from harness.config.benchmark import parse_benchmark
from harness.curvature.steering import steer
from harness.datasets.arrays import Arrays
from harness.datasets.digits import Digits
from harness.engine.images import open_data
from harness.engine.numerics import reproducible
from harness.errors import DataError, ModelError, SpecError
from harness.leaderboard import flags
from harness.models.demo import Demo
from harness.models.loaded import Loaded
from harness.threats.lp import Linf
from harness.transfer.backbone import FeatureExtractor
from harness.transfer.probe_model import Probe
from harness.transfer.transferred import Transferred
from harness.util.hashing import sha256_of_weights

FIVE = (5, 6, 7, 8, 9)


def probe(folder: Path, **keys: Any) -> Probe:
    train = Digits(split="train", classes=FIVE, per_class=8)
    fields = {"backbone": Demo(name="digits_plain_0to4"), "train": train, "cache": str(folder)}
    return Probe.model_validate(fields | keys)


def test_networks_of_the_same_weights_and_other_activations_share_no_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swin with GELU and Swin with ReLU have one state dict, but never each other's features."""
    (tmp_path / "two_networks.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef _of(activation):\n    torch.manual_seed(0)\n"
        "    layers = [nn.Conv2d(1, 4, 3), activation, nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)]\n"
        "    return nn.Sequential(*layers).eval()\n\n\n"
        "def relu():\n    return _of(nn.ReLU())\n\n\ndef gelu():\n    return _of(nn.GELU())\n"
    )
    monkeypatch.chdir(tmp_path)
    found = []
    for builder in ("two_networks:relu", "two_networks:gelu"):
        model = probe(tmp_path / "kept", backbone=build("models", {"kind": "checkpoint", "builder": builder}, "it"))
        with reproducible():
            loaded = model.load()
            found.append((model.backbone.load().sha256, loaded.sha256, loaded.network(torch.ones(1, 1, 8, 8))))
    (relu_weights, relu_sha256, relu_answers), (gelu_weights, gelu_sha256, gelu_answers) = found
    assert relu_weights == gelu_weights
    assert relu_sha256 != gelu_sha256
    assert not torch.allclose(relu_answers, gelu_answers, atol=1e-3)


def test_how_a_network_is_fitted_names_its_results(tmp_path: Path) -> None:
    model = probe(tmp_path)
    loaded = model.load()
    other = probe(tmp_path, tuning={"epochs": 3}).load()
    assert loaded.recipe != other.recipe
    assert Loaded(nn.Identity(), "").recipe == ""
    threat = Linf(eps=0.1)

    def identity(recipe: str) -> dict[str, Any]:
        return Task("m", model, Digits(), threat, 0, "cpu", loaded.sha256, recipe=recipe).identity(Steering(0.9))

    assert identity(loaded.recipe) != identity(other.recipe)


def test_a_row_of_two_fits_is_flagged() -> None:
    assert flags.of_weights("a+b") == {"refitted"}
    assert flags.of_weights("a") == set()


def test_an_activation_before_the_classifier_is_hidden_and_steered() -> None:
    """SiLU on [n, d] is left alone where it yields the logits, not where it yields the features."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.SiLU(), nn.Linear(12, 6), nn.SiLU(), nn.Linear(6, 3)
    ).eval()
    x = torch.rand(4, 1, 8, 8)
    steered = steer(FeatureExtractor(network, "5"), 0.7, example=x[:1], family="smooth")
    assert steered.coverage is not None
    assert (steered.coverage.sites, steered.coverage.steered) == (2, 2)
    whole = steer(network, 0.7, example=x[:1], family="smooth")
    seen: list[torch.Tensor] = []
    hook = network[5].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    whole(x)
    hook.remove()
    assert torch.allclose(steered(x), seen[-1], atol=1e-6)


def test_training_images_know_which_are_scored_whatever_their_labels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (10, 1, 4, 4), np.uint8)
    for name, some, y in (("a", x[:6], np.zeros(6, int)), ("b", x[5:], np.ones(5, int))):
        np.savez(tmp_path / f"{name}.npz", x=some, y=y)
    first, second = (open_data(Arrays(path=str(tmp_path / f"{name}.npz")), True) for name in ("a", "b"))
    assert len(first.pixels & second.pixels) == 1
    assert flags.of_training(first.pixels, second.pixels) == {"seen"}
    assert flags.of_training(first.pixels, set()) == set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": [{"kind": "probe", "backbone": {"kind": "demo", "name": "digits_plain_0to4"},
                      "train": {"kind": "digits", "classes": list(FIVE)}}]}, "among its training images"),
        ({"models": [{"kind": "demo", "name": "digits_plain_0to4"}], "selection": {"kind": "training"}},
         "nothing is fitted"),
    ],
)  # fmt: skip
def test_doctor_refuses_what_a_run_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    benchmark = parse_benchmark(
        {"name": "x", "dataset": {"kind": "digits", "classes": list(FIVE)}, "threat": {"kind": "clean"},
         "steering": {"beta": 0.9}} | changes
    )  # fmt: skip
    found = list(doctor(benchmark, runs=tmp_path / "runs", out=[tmp_path / "x.csv"]))
    assert any(finding.level == "problem" and message in finding.text for finding in found)
    assert not (tmp_path / "runs" / "features").exists()


def test_a_method_named_twice_is_refused() -> None:
    with pytest.raises(SpecError, match=r"models\[0\]\.methods: .*twice; name each once"):
        build(
            "models",
            {"kind": "probe", "backbone": {"kind": "demo", "name": "digits_plain_0to4"},
             "train": {"kind": "digits"}, "methods": ["lora-1", "lora-1"]},
            "models[0]",
        )  # fmt: skip


def test_too_many_training_images_are_blamed_on_the_key_train(tmp_path: Path) -> None:
    model = probe(tmp_path, train=Digits(split="train", n=5000))
    with pytest.raises(DataError, match=r"^train: dataset\.n: .*1297 images.* 5000 "):
        model.load()


def test_hashes_of_steered_and_adapted_networks_are_those_of_what_is_scored(tmp_path: Path) -> None:
    loaded = probe(tmp_path, tuning={"epochs": 1, "learning_rates": [0.01]}).load()
    assert isinstance(loaded, Transferred)
    with reproducible():
        for steering in (BASELINE, Steering(0.6), BASELINE._replace(method="lora-1")):
            assert loaded.fitted(steering) == {"weights_sha256": sha256_of_weights(loaded.steered(steering))}


@pytest.mark.slow
def test_a_probe_compiles_once_for_all_beta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And answers as it does uncompiled, to the precision that attacks need."""
    from harness.engine import acceleration
    from harness.engine import session as sessions
    from harness.engine.session import model_session

    monkeypatch.chdir(tmp_path)
    model = probe(tmp_path)
    session = model_session(model, "cpu", True)
    x = Digits(classes=FIVE).open().read((0, 1, 2, 3)).x
    threat = Linf(eps=0.1)
    task = Task("m", model, Digits(classes=FIVE), threat, 0, "cpu", session.loaded.sha256, compile="always")
    compiled: list[nn.Module] = []
    original = acceleration.compiled

    def counted(network: nn.Module) -> nn.Module:
        compiled.append(network)
        return original(network)

    monkeypatch.setattr(sessions, "compiled", counted)
    for beta in (0.9, 0.6):
        with reproducible():
            lane, plain = session.attacked(task, Steering(beta), x), session.steered(Steering(beta), x)
            rows = () if lane.parameters is None else (lane.parameters.expand(len(x), -1),)
            assert torch.allclose(lane.network(x, *rows), plain(x), atol=1e-3)
    assert len(compiled) == 1


def test_a_faulty_training_set_is_the_models_fault(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"probe\.folds: 11 folds of 10 training images; use fewer"):
        probe(tmp_path, train=Digits(split="train", classes=FIVE, per_class=2), probe={"folds": 11}).load().fitted(
            BASELINE
        )
