"""Toys whose features numpy can write down, and scikit-learn's own answers: oracles of the tests of transfer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
CLASSES = 3
SIDE, WIDTH = 4, 7


# --- the toy: a hidden layer of seven ReLUs ---


def toy() -> nn.Sequential:
    drawn = torch.Generator().manual_seed(5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.8 * torch.randn(parameter.shape, generator=drawn))
    return network


def other_toy() -> nn.Module:
    network = toy()
    with torch.no_grad():
        network.get_parameter("1.bias").add_(0.01)
    return network


SEEN = {"images": 0}
"""How many images were seen by `counted` networks, the single ones that prove something aside."""


class _Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = toy()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        SEEN["images"] += len(x) if len(x) > 1 else 0
        logits: torch.Tensor = self.network(x)
        return logits


def counted() -> nn.Module:
    return _Counted()


class _OneWay(torch.autograd.Function):
    """Minus the identity, without a backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return -x

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("there is no way back")


class _Irreversible(nn.Module):
    """Has a weight that takes no gradient; its input does."""

    def __init__(self) -> None:
        super().__init__()
        _, self.first, _, self.last = toy()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = _OneWay.apply(self.first.get_parameter("weight")), self.first.get_parameter("bias")
        logits: torch.Tensor = self.last(torch.relu(nn.functional.linear(x.flatten(1), weight, bias)))
        return logits


def irreversible() -> nn.Module:
    return _Irreversible()


class _Overflowing(nn.Module):
    """Has infinite features for the eighth image of `toy_images`, and no other."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.threshold = toy(), float(toy_images(60, seed=0)[0][7, 0, 0, 0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.where(x[:, :1, :1, :1] == self.threshold, torch.inf, 1.0)
        logits: torch.Tensor = self.network(x * scale)
        return logits


def overflowing() -> nn.Module:
    return _Overflowing()


class _Forked(nn.Module):
    """Has two layers that can be its classifier: whatever is wider is its answer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.a, self.b = nn.Linear(SIDE**2, WIDTH), nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.first(x.flatten(1)))
        a, b = self.a(features), self.b(-features)
        logits: torch.Tensor = a if a.shape[1] >= b.shape[1] else b
        return logits


def forked() -> nn.Module:
    return _Forked()


def phi(x: np.ndarray, beta: float, c: float = 0.5) -> np.ndarray:
    """Eq. 7 of the paper, in float64."""
    if beta == 1:
        return x.clip(0)
    gamma = 1 / (1 - beta)
    values: np.ndarray = c * x * expit(beta * gamma * x) + (1 - c) * np.logaddexp(0, gamma * x) / gamma
    return values


def by_hand(x: np.ndarray, beta: float = 1.0, c: float = 0.5) -> np.ndarray:
    """The features of the toy."""
    weight, bias = (parameter.detach().double().numpy() for parameter in list(toy().parameters())[:2])
    return phi(x.reshape(len(x), -1).astype(np.float64) @ weight.T + bias, beta, c)


def toy_images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, and classes that a probe of the toy largely gets right, at β = 0.3 most of all: as many of each."""
    drawn = np.random.default_rng(seed)
    x = drawn.uniform(0, 1, (n, 1, SIDE, SIDE)).astype(np.float32)
    return x, (np.argsort(np.argsort(hidden(x) + 0.3 * drawn.normal(size=n))) * CLASSES // n).astype(np.int64)


def hidden(x: np.ndarray, seed: int = 2) -> np.ndarray:
    """Return a number for each image, linear in the toy's features at β = 0.3; of mean 0 and deviation 1."""
    features = by_hand(x, 0.3)
    line: np.ndarray = (features / features.std(0)) @ np.random.default_rng(seed).normal(size=WIDTH)
    line = (line - line.mean()) / line.std()
    return line


def save(path: Path, x: np.ndarray, y: np.ndarray) -> str:
    np.savez(path, x=x, y=y)
    return str(path)


def arrays(folder: Path) -> None:
    """``train.npz`` of 60 images and ``test.npz`` of 45."""
    save(folder / "train.npz", *toy_images(60, seed=0))
    save(folder / "test.npz", *toy_images(45, seed=1))


def toy_board(**changes: Any) -> dict[str, Any]:
    """A benchmark of a probe of the toy, in this process."""
    probe = {
        "kind": "probe",
        "backbone": {"kind": "checkpoint", "builder": "helpers.transfer:toy"},
        "train": {"kind": "arrays", "path": "train.npz"},
    } | changes.pop("model", {})
    return {
        "name": "toys",
        "models": [probe],
        "dataset": {"kind": "arrays", "path": "test.npz"},
        "threat": {"kind": "clean"},
        "steering": {"beta": [0.9, 0.5, 0.0]},
        "executor": {"kind": "inline"},
        "device": "cpu",
    } | changes


@contextmanager
def working(folder: Path, *sites: Path) -> Iterator[Path]:
    """``folder`` as the working directory, and ``sites`` on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for site in sites:
            patch.syspath_prepend(str(site))
        yield folder


# --- scikit-learn's own ---


def sklearns(features: np.ndarray, y: np.ndarray, C: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=5000)).fit(features.astype(float), y)


def one_an_attribute(features: np.ndarray, y: np.ndarray, C: float) -> Any:
    """Predicts [n, k]."""
    probes = [sklearns(features, y[:, k], C) for k in range(y.shape[1])]
    return lambda x: np.stack([probe.predict(x.astype(float)) for probe in probes], axis=1)


def ridge(features: np.ndarray, y: np.ndarray, C: float) -> Any:
    """Predicts [n, k]."""
    probe = make_pipeline(StandardScaler(), Ridge(alpha=1 / C)).fit(features.astype(float), y)
    return lambda x: probe.predict(x.astype(float)).reshape(len(x), -1)


def dealt(y: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Shuffle, sort by class, and deal like cards; attributes and values count as one class."""
    shuffled = np.random.default_rng(seed).permutation(len(y))
    ordered = sorted(shuffled, key=lambda i: y[i]) if y.ndim == 1 else list(shuffled)
    return [np.array(sorted(ordered[fold::folds])) for fold in range(folds)]


def cross_validated(y: np.ndarray, folds: int, seed: int, graded: Any) -> np.ndarray:
    """Return the outcome of each image by ``graded(others, fold)`` of its fold."""
    outcomes = np.full(len(y), np.nan)
    for fold in dealt(y, folds, seed):
        outcomes[fold] = graded(np.setdiff1d(np.arange(len(y)), fold), fold)
    return outcomes


def best(means: dict[float, float]) -> float:
    """The key of the largest; of equal ones the smallest key."""
    return min(means, key=lambda key: (-round(means[key], 9), key))


def hand_C(features: np.ndarray, y: np.ndarray, folds: int = 5, seed: int = 0) -> float:
    def mean(C: float) -> float:
        def graded(others: np.ndarray, fold: np.ndarray) -> np.ndarray:
            right: np.ndarray = sklearns(features[others], y[others], C).predict(features[fold]) == y[fold]
            return right

        return float(cross_validated(y, folds, seed, graded).mean())

    return best({C: mean(C) for C in STRENGTHS})


# --- LoRA and fine-tuning, by formula ---


def lora_numbers(network: nn.Module, rank: int) -> int:
    """r·(in·k·k + out) for each ungrouped convolution, r·(in + out) for each linear layer."""
    total = 0
    for module in network.modules():
        if isinstance(module, nn.Linear):
            total += rank * (module.in_features + module.out_features)
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            kernel = module.kernel_size[0] * module.kernel_size[1]
            total += rank * (module.in_channels * kernel + module.out_channels)
    return total


def numbers(network: nn.Module) -> int:
    return sum(int(np.prod(parameter.shape)) for parameter in network.parameters())
