"""Many β in one batch: the bits of each image are those of a batch with its β alone, or the network is noticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api.records import FamilyName
from harness.curvature import mixed as under_test
from harness.curvature.families import FAMILIES
from harness.curvature.mixed import Mixed, mixes
from harness.curvature.steering import Steered, steer
from harness.errors import ModelError

X = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BETAS = (0.0, 0.31, 0.5, 0.8, 0.99, 0.64)


class Residual(nn.Module):
    """Functional and in-place activations, one registered module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.norm, self.act, self.last = nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.first(x)))
        y = F.relu(y + F.leaky_relu(self.second(y), 0.1))
        logits: Tensor = self.last(F.relu6(y).flatten(1))
        return logits


class Windows(nn.Module):
    """Folds windows into the batch, as Swin does, and unfolds them."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.mix, self.act, self.last = nn.Linear(48, 12), act, nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(len(x) * 4, 48)
        logits: Tensor = self.last(self.act(self.mix(windows)).reshape(len(x), 48))
        return logits


class TokensFirst(nn.Module):
    """Has its batch in dimension 1, with as many tokens in dimension 0 as images."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.last = nn.Linear(32, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(len(x), 6, 32).transpose(0, 1)
        logits: Tensor = self.last(F.relu(self.mix(tokens)).mean(0))
        return logits


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 33), nn.ReLU(), nn.Linear(33, 7), nn.PReLU(), nn.Linear(7, 5))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 3, 2), nn.Hardtanh(), nn.Flatten(),
                         nn.Linear(28, 9), nn.RReLU(), nn.Linear(9, 5))  # fmt: skip


def smooth() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.GELU(), nn.Flatten(), nn.Linear(180, 9), nn.GELU("tanh"),
                         nn.Linear(9, 5))  # fmt: skip


BUILDS: dict[str, tuple[Callable[[], nn.Module], FamilyName]] = {
    "mlp": (mlp, "relu"),
    "cnn": (cnn, "relu"),
    "residual": (Residual, "relu"),
    "smooth": (smooth, "smooth"),
}


def gradient(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(network(x).square().sum(), x)[0]


def parameters(steered: Steered, betas: tuple[float, ...]) -> Tensor:
    family, c = FAMILIES[steered.steering.family], steered.steering.c
    return torch.tensor([family.curve_parameters(beta, c) for beta in betas])


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("name", BUILDS)
def test_each_image_has_the_logits_and_the_gradient_of_its_own_beta(name: str, replaced: bool) -> None:
    build, kind = BUILDS[name]
    betas = BETAS if kind == "relu" else (0.1, *BETAS[1:])
    network = seeded(build)
    steered = steer(network, 0.8, family=kind, example=X)
    if replaced:
        steered.replace_modules(X)
    mixed, rows = Mixed(steered), parameters(steered, betas)
    logits, slope = mixed(X, rows), gradient(lambda x: mixed(x, rows), X)
    for image, beta in enumerate(betas):
        alone = steer(network, beta, family=kind, example=X)
        assert torch.equal(logits[image], alone(X)[image])
        assert torch.equal(slope[image], gradient(alone, X)[image])
        assert torch.equal(mixed(X, rows[image]), alone(X))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(mixed(X[order], rows[order]), logits[order])
    assert mixes(steered, X)


def test_a_network_that_folds_its_batch_is_noticed() -> None:
    for folding in (seeded(lambda: Windows(nn.ReLU())), seeded(lambda: Windows(nn.LeakyReLU(0.2)))):
        steered = steer(folding, 0.8, example=X)
        assert not mixes(steered, X)
        told = r"mixed β: expected an activation of 6 images.*found shape \(24, 12\).*folds"
        with pytest.raises(ModelError, match=told):
            Mixed(steered)(X, parameters(steered, BETAS))
    silu = steer(seeded(lambda: Windows(nn.SiLU())), 0.8, family="smooth", example=X)
    assert not mixes(silu, X)


def test_a_batch_in_another_dimension_of_the_same_size_is_noticed() -> None:
    steered = steer(seeded(TokensFirst), 0.8, example=X)
    Mixed(steered)(X, parameters(steered, BETAS))
    assert not mixes(steered, X)


def test_a_curve_without_parameters_or_a_single_image_proves_nothing() -> None:
    network = seeded(mlp)
    assert not mixes(steer(network, 1.0, example=X), X)
    assert not mixes(steer(network, 0.8, example=X), X[:1])
    assert not mixes(steer(seeded(smooth), 0.0, family="smooth", example=X), X)


def test_the_proof_looks_at_every_bit_of_logits_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    steered = steer(seeded(mlp), 0.8, example=X)
    assert mixes(steered, X)
    probe = under_test.probe
    for part in (0, 1):

        def off(network: Callable[..., Tensor], x: Tensor, *rows: Tensor, part: int = part) -> tuple[Tensor, Tensor]:
            found = probe(network, x, *rows)
            if not isinstance(network, Steered):
                found[part][-1].view(-1)[-1] *= 1 + 2**-22
            return found

        monkeypatch.setattr(under_test, "probe", off)
        assert not mixes(steered, X)
