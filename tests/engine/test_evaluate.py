"""Scores against closed forms and against AutoAttack itself."""

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from harness.api.dataset import Dataset, Source
from harness.api.model import Model
from harness.api.records import BASELINE, Batch, Preprocessing, Steering
from harness.api.work import Shard, Task
from harness.datasets.digits import Digits
from harness.engine.evaluate import evaluate, source
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

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.Linear(SIDE * SIDE, CLASSES)
        with torch.no_grad():
            weight = torch.randn(CLASSES, SIDE * SIDE, generator=generator)
            self.head.weight.copy_(weight - weight.mean(1, keepdim=True))  # uniform grey is on every boundary
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(torch.relu(x.flatten(1)))


class AffineModel(Model):
    kind = "affine"
    seed: int = 0

    @property
    def label(self):
        return "affine"

    def load(self, *, offline=False):
        network = Affine(self.seed).eval()
        return Loaded(network, sha256_of_weights(network))


class Middle(Source):
    """Images around ½, far enough from the box that it never binds, with the labels that a network gives them."""

    def __init__(self, network, n):
        generator = torch.Generator().manual_seed(1)
        self.x = 0.4 + 0.2 * torch.rand(n, 1, SIDE, SIDE, generator=generator)
        with torch.no_grad():
            self.y = network(self.x).argmax(1)

    def __len__(self):
        return len(self.x)

    def read(self, indices):
        chosen = torch.tensor(indices)
        return Batch(self.x[chosen], self.y[chosen], chosen)


class MiddleData(Dataset):
    kind = "middle"
    size: int = 40

    def open(self, *, offline=False):
        return Middle(Affine().eval(), self.size)


def play(chain):
    """All stages of a lane: the scores, and the outcome of each stage."""
    outcomes = []
    while cell := chain.next([outcome.values for outcome in outcomes]):
        outcomes.append(evaluate(cell))
    return chain.bounds([outcome.values for outcome in outcomes]), outcomes


def task(model, dataset, threat, seed=0):
    return Task(model.label, model, dataset, threat, seed, "cpu", model_session(model, "cpu", False).loaded.sha256)


def exact_radius(x, y, weight, bias, order):
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
def test_linear_network_has_its_exact_robust_accuracy(cls, eps, beta):
    """β = 1: affine where x ≥ 0. β = 0, c = 1: φ(x) = x/2, affine everywhere, so the radius is that of W/2."""
    threat = cls.model_validate({"eps": eps, "attack": {"stages": ["apgd-ce", "apgd-t", "fab-t", "square"]}})
    data, model = MiddleData(), AffineModel()
    images = tuple(range(data.size))
    steering = BASELINE if beta == 1.0 else Steering(beta, 1.0)
    (clean, robust), _ = play(TrialChain(task(model, data, threat), steering, Shard(images, "")))
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
@pytest.mark.parametrize("steering", [BASELINE, Steering(0.8)])
def test_agrees_with_autoattack_run_directly(steering):
    """The same images are lost, batch by batch, at the same seed; and stage by stage."""
    threat, model, data = Linf(eps=0.1), Demo(name="digits_plain"), Digits()
    for images in (tuple(range(10)), tuple(range(10, 20))):
        chain = TrialChain(task(model, data, threat), steering, Shard(images, str(images[0])))
        (_, robust), outcomes = play(chain)
        batch = source(data, Preprocessing(), False).read(images)
        network = model_session(model, "cpu", False).steered(steering, batch.x[:1])
        seed = chain.next([]).seed
        with reproducible():
            tool = AutoAttack(network, norm="Linf", eps=0.1, seed=seed, device="cpu")
            adversarial, _ = tool.run_standard_evaluation(batch.x, batch.y, batch_size=len(images))
            survived = network(adversarial).argmax(1) == batch.y
        assert np.array_equal(robust > 0, survived.numpy())
        assert 0 < survived.sum() < len(images)
        found = {
            i: x
            for o in outcomes
            if o.adversaries
            for x, i in zip(o.adversaries.images, o.adversaries.indices, strict=True)
        }
        for position, image in enumerate(images):
            if image in found:
                assert torch.equal(found[image], adversarial[position])


def test_survivors_alone_are_attacked_and_kept_images_fool_the_network():
    threat = Linf.model_validate({"eps": 0.1, "attack": {"stages": ["apgd-ce", "square"], "queries": 200}})
    model, data, images = Demo(name="digits_plain"), Digits(), tuple(range(30))
    (clean, robust), outcomes = play(TrialChain(task(model, data, threat), BASELINE, Shard(images, "")))
    network = model_session(model, "cpu", False).loaded.network
    batch = source(data, Preprocessing(), False).read(images)
    lost = set()
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

    kind = "cheating"
    norm = "Linf"
    how: str

    @property
    def stages(self):
        return ("cheat",)

    def perturb(self, stage, network, batch, seed):
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


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("far", r"Linf distance 0\.2 where eps is 0\.1"),
        ("outside", r"pixels in \[-0\.05, .*\], not \[0, 1\]"),
        ("nan", "NaN or infinite pixels"),
        ("shape", "returned"),
    ],
)
def test_invalid_adversaries_are_never_scored(how, message):
    chain = TrialChain(
        task(Demo(name="digits_plain"), Digits(), Cheating(eps=0.1, how=how)), BASELINE, Shard((0, 1), "")
    )
    with pytest.raises(InvalidAdversary, match=message) as caught:
        play(chain)
    assert caught.value.flag == "invalid"


def test_an_image_that_fools_nobody_is_not_lost():
    """The attack claims nothing; the harness asks the network."""
    chain = TrialChain(
        task(Demo(name="digits_plain"), Digits(), Cheating(eps=0.1, how="nothing")), BASELINE, Shard((0, 1, 2), "")
    )
    (clean, robust), _ = play(chain)
    assert np.array_equal(clean, robust)


def test_rounding_is_forgiven():
    play(
        TrialChain(
            task(Demo(name="digits_plain"), Digits(), Cheating(eps=0.1, how="rounding")), BASELINE, Shard((0,), "")
        )
    )


class Odd(Model):
    """A network with one fault."""

    kind = "odd"
    fault: str

    @property
    def label(self):
        return self.fault

    def load(self, *, offline=False):
        network = Demo(name="digits_plain").load().network
        wrapped = OddNetwork(network, self.fault).eval()
        if self.fault == "training":
            wrapped.train()
        return Loaded(wrapped, sha256_of_weights(wrapped))


class OddNetwork(nn.Module):
    def __init__(self, network, fault):
        super().__init__()
        self.network, self.fault = network, fault

    def forward(self, x):
        logits = self.network(x)
        if self.fault == "nan":
            return logits / 0 * 0
        if self.fault == "probabilities":
            return logits.softmax(1)
        if self.fault == "few":
            return logits[:, :5]
        if self.fault == "shape":
            return logits[None]
        return logits + 0.01 * torch.randn_like(logits) if self.fault == "randomized" else logits


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
def test_networks_that_cannot_be_scored(fault, message):
    threat = Linf.model_validate({"eps": 0.1, "attack": {"stages": ["apgd-ce"], "iterations": 2}})
    with pytest.raises(ModelError, match=message):
        play(TrialChain(task(Odd(fault=fault), Digits(), threat), BASELINE, Shard(tuple(range(20)), "")))


def test_a_randomised_network_is_flagged_and_an_honest_one_is_not():
    threat = Linf.model_validate({"eps": 0.1, "attack": {"stages": ["apgd-ce"], "iterations": 2}})
    for model, flags in ((Odd(fault="randomized"), {"randomized"}), (Odd(fault="none"), set())):
        _, outcomes = play(TrialChain(task(model, Digits(), threat), BASELINE, Shard(tuple(range(20)), "")))
        assert {flag for outcome in outcomes for flag in outcome.flags} == flags


def test_few_classes_are_flagged_and_the_targets_fitted():
    threat = Linf.model_validate({"eps": 0.02, "attack": "standard"})
    _, outcomes = play(TrialChain(task(AffineModel(), MiddleData(), threat), BASELINE, Shard(tuple(range(3)), "")))
    assert "few_classes" in outcomes[0].flags
