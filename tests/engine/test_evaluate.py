"""Scores against closed forms and against AutoAttack itself."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from harness.api.dataset import Dataset, Source
from harness.api.model import Model, Scorable
from harness.api.records import BASELINE, Batch, Preprocessing, Steering
from harness.api.threat import Threat
from harness.api.work import Outcome, Shard, Task
from harness.datasets.digits import Digits
from harness.engine.evaluate import evaluate
from harness.engine.images import source
from harness.engine.numerics import reproducible
from harness.engine.session import model_session
from harness.errors import InvalidAdversary, ModelError
from harness.models.demo import Demo
from harness.models.loaded import Loaded
from harness.scheduling.trials import TrialChain
from harness.threats.lp import L1, L2, Linf, Lp
from harness.util.hashing import sha256_of_weights

CLASSES, SIDE = 4, 6


class Affine(nn.Module):
    """Logits W·x + b with a ReLU that never acts, x ≥ 0 in pixel space: affine, and yet with something to steer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.Linear(SIDE * SIDE, CLASSES)
        with torch.no_grad():
            weight = torch.randn(CLASSES, SIDE * SIDE, generator=generator)
            self.head.weight.copy_(weight - weight.mean(1, keepdim=True))  # uniform grey is on every boundary
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(x.flatten(1)))
        return logits


class AffineModel(Model):
    kind: ClassVar[str] = "affine"
    seed: int = 0

    @property
    def label(self) -> str:
        return "affine"

    def load(self, *, offline: bool = False) -> Scorable:
        network = Affine(self.seed).eval()
        return Loaded(network, sha256_of_weights(network))


class Middle(Source):
    """Images around ½, far enough from the box that it never binds, with the labels that a network gives them."""

    def __init__(self, network: nn.Module, n: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = 0.4 + 0.2 * torch.rand(n, 1, SIDE, SIDE, generator=generator)
        with torch.no_grad():
            self.y = network(self.x).argmax(1)

    def __len__(self) -> int:
        return len(self.x)

    def read(self, indices: tuple[int, ...]) -> Batch:
        chosen = torch.tensor(indices)
        return Batch(self.x[chosen], self.y[chosen], chosen)


class MiddleData(Dataset):
    kind: ClassVar[str] = "middle"
    size: int = 40

    def open(self, *, offline: bool = False) -> Source:
        return Middle(Affine().eval(), self.size)


def score(
    model: Model, dataset: Dataset, threat: Threat, images: tuple[int, ...], steering: Steering = BASELINE
) -> tuple[np.ndarray, np.ndarray, list[Outcome], TrialChain]:
    """Run all stages: which images are right [n], which robust [n], and the outcome of each stage."""
    weights = model_session(model, "cpu", False).loaded.sha256
    task = Task(model.label, model, dataset, threat, 0, "cpu", weights)
    chain = TrialChain(task, steering, Shard(images, str(images[0])))
    outcomes: list[Outcome] = []
    while cell := chain.next([outcome.values for outcome in outcomes]):
        outcomes.append(evaluate(cell))
    clean, robust = chain.bounds([outcome.values for outcome in outcomes])
    return clean, robust, outcomes, chain


def exact_radius(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, order: str) -> Tensor:
    """The distance to the nearest boundary, min over classes of margin / dual norm of the difference of weights."""
    logits = x.flatten(1).double() @ weight.double().T + bias.double()
    radius = torch.full((len(x),), torch.inf, dtype=torch.float64)
    dual = {"Linf": 1, "L2": 2, "L1": torch.inf}[order]
    for k in range(CLASSES):
        margin = logits[torch.arange(len(x)), y] - logits[:, k]
        norm = torch.linalg.vector_norm((weight[y] - weight[k]).double(), dual, dim=1)
        radius = torch.where(y == k, radius, torch.minimum(radius, margin / norm))
    return radius


@pytest.mark.parametrize("beta", [1.0, 0.0])
@pytest.mark.parametrize(("cls", "eps"), [(Linf, 0.0045), (L2, 0.02), (L1, 0.1)])
def test_linear_network_has_its_exact_robust_accuracy(cls: type[Lp], eps: float, beta: float) -> None:
    """β = 1: affine where x ≥ 0. β = 0, c = 1: φ(x) = x/2, affine everywhere, so the radius is that of W/2."""
    attack = {"stages": ["apgd-ce", "apgd-t", "fab-t", "square"], "queries": 500}
    threat = cls.model_validate({"eps": eps, "attack": attack})
    data = MiddleData()
    images = tuple(range(data.size))
    steering = BASELINE if beta == 1.0 else Steering(beta, 1.0)
    clean, robust, _, _ = score(AffineModel(), data, threat, images, steering)
    batch = data.open().read(images)
    network = Affine()
    scale = 1.0 if beta == 1.0 else 0.5
    radius = exact_radius(batch.x, batch.y, scale * network.head.weight.detach(), network.head.bias.detach(), cls.norm)
    decided = (radius / eps - 1).abs() > 0.03  # attacks are not exact at the very boundary
    assert clean.all()
    assert 0.2 < (radius > eps).double().mean() < 0.8
    assert decided.sum() >= 30
    assert np.array_equal(robust[decided] > 0, (radius > eps)[decided].numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steering", "images"), [(BASELINE, tuple(range(20))), (Steering(0.8), tuple(range(20, 40)))], ids=["1", "0.8"]
)
def test_agrees_with_autoattack_run_directly(steering: Steering, images: tuple[int, ...]) -> None:
    """The same images are lost, at the same seed; and stage by stage."""
    threat, model, data = Linf(eps=0.1), Demo(name="digits_plain"), Digits()
    _, robust, outcomes, chain = score(model, data, threat, images, steering)
    batch = source(data, Preprocessing(), False).read(images)
    network = model_session(model, "cpu", False).steered(steering, batch.x[:1])
    first = chain.next([])
    assert first is not None
    with reproducible():
        tool = AutoAttack(network, norm="Linf", eps=0.1, seed=first.seed, device="cpu")
        adversarial, _ = tool.run_standard_evaluation(batch.x, batch.y, batch_size=len(images))
        survived = network(adversarial).argmax(1) == batch.y
    assert np.array_equal(robust > 0, survived.numpy())
    assert 0 < survived.sum() < len(images)
    found = {
        number: image
        for outcome in outcomes
        if outcome.adversaries
        for image, number in zip(outcome.adversaries.images, outcome.adversaries.indices, strict=True)
    }
    assert found
    for number, image in found.items():
        assert torch.equal(image, adversarial[images.index(number)])


def test_survivors_alone_are_attacked_and_kept_images_fool_the_network() -> None:
    threat = Linf.model_validate({"eps": 0.1, "attack": {"stages": ["apgd-ce", "square"], "queries": 200}})
    model, data, images = Demo(name="digits_plain"), Digits(), tuple(range(30))
    clean, robust, outcomes, _ = score(model, data, threat, images)
    network = model_session(model, "cpu", False).loaded.network
    batch = source(data, Preprocessing(), False).read(images)
    lost: set[int] = set()
    for outcome in outcomes:
        if outcome.adversaries is None:
            continue
        adversarial, numbers = outcome.adversaries.images, outcome.adversaries.indices
        assert not lost & set(numbers)  # nobody is lost twice
        lost |= set(numbers)
        positions = [images.index(i) for i in numbers]
        assert (adversarial - batch.x[positions]).abs().max() <= 0.1 + 1e-5
        assert (network(adversarial).argmax(1) != batch.y[positions]).all()
    assert lost == {i for i, c, r in zip(images, clean, robust, strict=True) if c and not r}


class Cheating(Lp):
    """Returns whatever it is told to, in or out of the ball."""

    kind: ClassVar[str] = "cheating"
    norm: ClassVar[Literal["Linf"]] = "Linf"
    how: str

    @property
    def stages(self) -> tuple[str, ...]:
        return ("cheat",)

    def perturb(self, stage: str, network: nn.Module, batch: Batch, seed: int) -> Tensor:
        x = batch.x.clone()
        if self.how == "far":
            return (x + 0.2).clamp(0, 1)
        if self.how == "outside":
            return x - 0.05
        if self.how == "nan":
            x[0] = torch.nan
        if self.how == "shape":
            return x[:, :, :4]
        if self.how == "rounding":
            return (x + self.eps + 1e-7).clamp(0, 1)
        return x


def cheat(how: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    threat = Cheating(eps=0.1, how=how)
    clean, robust, _, _ = score(Demo(name="digits_plain"), Digits(), threat, tuple(range(n)))
    return clean, robust


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("far", r"Linf distance 0\.2 where eps is 0\.1"),
        ("outside", r"pixels in \[-0\.05, .*\], not \[0, 1\]"),
        ("nan", "NaN or infinite pixels"),
        ("shape", r"images of shape \[2, 1, 4, 8\] for \[2, 1, 8, 8\]"),
    ],
)
def test_invalid_adversaries_are_never_scored(how: str, message: str) -> None:
    with pytest.raises(InvalidAdversary, match=message) as caught:
        cheat(how, 2)
    assert caught.value.flag == "invalid"


def test_an_image_that_fools_nobody_is_not_lost() -> None:
    """The attack claims nothing; the harness asks the network."""
    clean, robust = cheat("nothing", 3)
    assert np.array_equal(clean, robust)


def test_rounding_is_forgiven() -> None:
    cheat("rounding", 1)


class Odd(Model):
    """A network with one fault."""

    kind: ClassVar[str] = "odd"
    fault: str

    @property
    def label(self) -> str:
        return self.fault

    def load(self, *, offline: bool = False) -> Scorable:
        network = Demo(name="digits_plain").load().network
        wrapped = OddNetwork(network, self.fault).eval()
        if self.fault == "training":
            wrapped.train()
        return Loaded(wrapped, sha256_of_weights(wrapped))


class OddNetwork(nn.Module):
    def __init__(self, network: nn.Module, fault: str) -> None:
        super().__init__()
        self.network, self.fault = network, fault

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        if self.fault == "nan":
            return logits / 0 * 0
        if self.fault == "probabilities":
            return logits.softmax(1)
        if self.fault == "few":
            return logits[:, :5]
        if self.fault == "shape":
            return logits[None]
        return logits + 0.01 * torch.randn_like(logits) if self.fault == "randomized" else logits


BRIEF = {"stages": ["apgd-ce"], "iterations": 2}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "logits are NaN"),
        ("probabilities", "probabilities, not logits"),
        ("few", r"labels up to \d, but the network yields 5 logits"),
        ("shape", r"expected logits of shape \[20, classes\]"),
        ("training", "training mode"),
    ],
)
def test_networks_that_cannot_be_scored(fault: str, message: str) -> None:
    threat = Linf.model_validate({"eps": 0.1, "attack": BRIEF})
    with pytest.raises(ModelError, match=message):
        score(Odd(fault=fault), Digits(), threat, tuple(range(20)))


def test_a_randomised_network_is_flagged_and_an_honest_one_is_not() -> None:
    threat = Linf.model_validate({"eps": 0.1, "attack": BRIEF})
    for fault, flags in (("randomized", {"randomized"}), ("none", set())):
        _, _, outcomes, _ = score(Odd(fault=fault), Digits(), threat, tuple(range(20)))
        assert {flag for outcome in outcomes for flag in outcome.flags} == flags


def test_few_classes_are_flagged_and_the_targets_fitted() -> None:
    threat = Linf.model_validate({"eps": 0.02, "attack": "standard"})
    _, _, outcomes, _ = score(AffineModel(), MiddleData(), threat, tuple(range(3)))
    assert "few_classes" in outcomes[0].flags
