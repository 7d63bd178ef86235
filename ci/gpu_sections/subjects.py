"""Networks, images and trials that the sections share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpu_sections.section import Place
from harness.api.records import Steering
from harness.api.trial import Attempt, Result, Trial
from harness.api.work import Portion, Task
from harness.config.benchmark import parse_benchmark
from harness.engine.evaluate import evaluate
from harness.engine.session import model_session
from harness.models.checkpoint import Checkpoint
from harness.models.demo import Demo

RESNET = {
    "kind": "checkpoint",
    "name": "ResNet-18",
    "builder": "pyautoattack.examples.resnet:ResNet18",
    "weights": "pkg:pyautoattack/examples/model_test.pt",
}
"""The CIFAR-10 network that pyautoattack ships."""
DEMO = {"kind": "demo", "name": "digits_plain"}
CIFAR = (3, 32, 32)


@cache
def resnet(device: str) -> nn.Module:
    """Return pyautoattack's CIFAR ResNet-18 on a device; it calls its ReLUs as functions."""
    fields = {key: value for key, value in RESNET.items() if key != "kind"}
    return Checkpoint(**fields).load(offline=True).network.requires_grad_(False).to(device)


def demo(device: str) -> nn.Module:
    """Return the demo network of the digits on a device."""
    return Demo(name="digits_plain").load(offline=True).network.requires_grad_(False).to(device)


class Functional(nn.Module):
    """A small network that calls its activations as functions, methods and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.last = nn.Linear(32 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, 10] of images [n, 3, 32, 32]."""
        x = F.relu_(self.first(x))
        x = F.leaky_relu(self.second(x), 0.1)
        return self.last(x.flatten(1).relu())  # type: ignore[no-any-return]


class Linear(nn.Module):
    """A network that costs next to nothing, so that a step is the attack's own work."""

    def __init__(self, shape: tuple[int, ...], classes: int = 10) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(0)
        size = int(np.prod(shape))
        self.weight = nn.Parameter(torch.randn(size, classes, generator=drawn) / size**0.5, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, c, h, w]."""
        return x.flatten(1) @ self.weight


def noise(n: int, shape: tuple[int, ...] = CIFAR) -> Tensor:
    """Return ``n`` images of noise on the CPU, the same every time."""
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def pictures(place: Place, n: int) -> Tensor:
    """Return ``n`` CIFAR-10 images on the CPU; noise where there are none."""
    if place.images is None:
        return noise(n)
    with np.load(place.images) as file:
        return torch.from_numpy(file["x"][:n]).float() / 255


def question(place: Place, n: int, **changes: Any) -> dict[str, Any]:
    """Return a benchmark as YAML has it: the ResNet-18 on CIFAR-10 images, or the demo network on digits."""
    cifar = place.is_gpu and place.images is not None
    return {
        "name": "gpu",
        "models": [RESNET if cifar else DEMO],
        "dataset": {"kind": "arrays", "path": str(place.images), "n": n} if cifar else {"kind": "digits", "n": n},
        "threat": {"kind": "Linf", "eps": 1 / 255 if cifar else 0.1},
        "steering": {"beta": [0.9]},
        "device": place.device,
    } | changes


def portion(asked: dict[str, Any], stage: str, images: Sequence[int], beta: float = 0.9, target: int = -1) -> Portion:
    """Return one attempt on each image, at one β, of a benchmark's one model."""
    parsed = parse_benchmark(asked)
    (model,) = parsed.models
    weights = model_session(model, parsed.device, True, False).loaded.sha256
    width = parsed.batch_size if isinstance(parsed.batch_size, int) else None
    task = Task(
        model.label, model, parsed.dataset, parsed.threat, parsed.seed, parsed.device, weights, offline=True,
        compile=parsed.compile, precision=parsed.precision, batch_size=width,
    )  # fmt: skip
    return Portion(task, tuple(Trial(Steering(beta), image, Attempt(stage, target)) for image in images))


def results(asked: Portion) -> tuple[list[Result], set[str]]:
    """Compute a portion in this process; its results in the order of the images, and the flags that were raised."""
    reports = [report for some in evaluate(asked) for report in some]
    found = [result for report in reports for result in report.results]
    return sorted(found, key=lambda result: result.trial.image), {flag for report in reports for flag in report.flags}
