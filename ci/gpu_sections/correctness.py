"""Does the device compute what the CPU does? φ, the steering's proof, logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from gpu_sections.section import Finding, Miss, Place, expect, needs_a_gpu, table
from gpu_sections.subjects import CIFAR, Functional, demo, noise, pictures, resnet
from harness.api.records import Steering
from harness.curvature.mixed import mixes
from harness.curvature.phi import curve_parameters, parametric, phi
from harness.curvature.steering import steered_network
from harness.engine.numerics import reproducible
from harness.engine.verification import logits as judged
from harness.models.loaded import Loaded

CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
"""Largest error of φ and φ', relative to the sum of the magnitudes of its terms."""
SMALL = 1e-6
"""Sum of the terms below which an error is taken relative to this: rounding γx alone costs more in φ's tail."""
LOGITS = 2e-5
"""Largest error of logits, relative to the largest."""
MARGIN = 1e-3
"""Margin of the two likeliest classes up to which a prediction may change."""
Way = Callable[[Tensor, float, float], Tensor]
"""φ of a tensor, at β and c."""
BETAS, WEIGHTS = (0.0, 0.5, 0.9, 0.99, 0.9999), (0.0, 0.5, 1.0)


# --- φ ---


def activation(place: Place) -> Iterator[Finding]:
    """Compare φ and φ', eager and compiled, with float64 on the CPU; β = 1 must be ReLU bit for bit."""
    ways: dict[str, Way] = {"eager": phi, "eager, β as a tensor": _by_tensor(parametric)}
    ways["compiled"] = _by_tensor(torch.compile(parametric, dynamic=True))
    rows = []
    for dtype, tolerance in CLOSE.items():
        for name, way in ways.items():
            value, slope = _worst(way, dtype, place.device)
            rows.append({"way": name, "dtype": str(dtype).removeprefix("torch."), "φ": value, "φ′": slope})
            yield from expect(
                max(value, slope) <= tolerance,
                f"φ {name} in {dtype}: expected errors up to {tolerance:g}, found {value:.2g} and {slope:.2g} (φ′)",
            )
    yield table(rows)
    yield from _is_relu(place.device)


def _by_tensor(way: Callable[[Tensor, Tensor], Tensor]) -> Way:
    """Return a way of computing φ that is given β and c, from one that is given a tensor of parameters."""
    return lambda x, beta, c: way(x, torch.tensor(curve_parameters(beta, c), device=x.device))


def _points() -> Tensor:
    """Return numbers of every order of magnitude that an activation has, and 0."""
    steps = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    small = torch.logspace(-7, 1, 2000, dtype=torch.float64)
    return torch.cat([steps, small, -small, torch.zeros(1, dtype=torch.float64)])


def _worst(way: Way, dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Return the largest relative errors of φ and φ' over a grid of β and c."""
    x = _points().to(dtype)
    worst = [0.0, 0.0]
    for beta in BETAS:
        for c in WEIGHTS:
            leaf = x.to(device, copy=True).requires_grad_()
            value = way(leaf, beta, c)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
            for which, (got, want, scale) in enumerate(_against(x.double(), value, slope, beta, c)):
                error = float(((got.detach().cpu().double() - want).abs() / scale).max())
                worst[which] = max(worst[which], error)
    return worst[0], worst[1]


def _against(
    x: Tensor, value: Tensor, slope: Tensor, beta: float, c: float
) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Return what was found, what is right by Eq. 7 in float64, and the size of the terms that it is the sum of."""
    gamma = 1 / (1 - beta)
    eta = beta * gamma
    swish, soft = torch.sigmoid(eta * x), torch.nn.functional.softplus(gamma * x, 1, 40.0) / gamma
    bend = eta * x * swish * torch.sigmoid(-eta * x)
    terms = (c * x * swish, (1 - c) * soft)
    slopes = (c * swish, c * bend, (1 - c) * torch.sigmoid(gamma * x))
    return tuple(
        (got, torch.stack(parts).sum(0), torch.stack(parts).abs().sum(0).clamp_min(SMALL))
        for got, parts in ((value, terms), (slope, slopes))
    )


def _is_relu(device: str) -> Iterator[Miss]:
    for dtype in CLOSE:
        x = _points().to(device, dtype).requires_grad_()
        steered, plain = phi(x, 1.0), torch.relu(x)
        slopes = (torch.autograd.grad(y.sum(), x)[0] for y in (steered, plain))
        yield from expect(
            torch.equal(steered, plain) and torch.equal(*slopes), f"φ at β = 1 in {dtype}: expected ReLU bit for bit"
        )


# --- steering ---


def steering(place: Place) -> Iterator[Finding]:
    """Prove the steering on the device: the activations that it reaches are those of the CPU."""
    rows = []
    for name, (make, shape) in _architectures().items():
        example = noise(4, shape)
        with reproducible():
            here = Loaded(make("cpu"), "").coverage("all", example[:1])
            network = make(place.device)
            there = Loaded(network, "").coverage("all", example[:1].to(place.device))
            steered = steered_network(network, Steering(0.9), example[:1].to(place.device))
            mixed = mixes(steered, example.to(place.device))
        rows.append({"network": name, "sites": there.sites, "steered": there.steered, "β mixed": mixed})
        yield from expect(here == there, f"steering of {name}: expected {here} as on the CPU, found {there}")
    yield table(rows)


def _architectures() -> dict[str, tuple[Callable[[str], nn.Module], tuple[int, ...]]]:
    def seeded(make: Callable[[], nn.Module]) -> Callable[[str], nn.Module]:
        def made(device: str) -> nn.Module:
            torch.manual_seed(0)
            return make().eval().requires_grad_(False).to(device)

        return made

    return {
        "demo, digits": (demo, (1, 8, 8)),
        "torchvision ResNet-18": (seeded(resnet18), (3, 64, 64)),
        "pyautoattack's CIFAR ResNet-18": (resnet, CIFAR),
        "functional ReLUs": (seeded(Functional), CIFAR),
    }


# --- logits ---


def logits(place: Place) -> Iterator[Finding]:
    """Compare logits with the CPU's, also after somebody has allowed TF32 by either of torch's interfaces."""
    images = pictures(place, 256 if place.is_gpu else 32)
    expected = torch.cat([judged(resnet("cpu"), part) for part in torch.split(images, 64)]).double()
    rows = []
    for name, allow in (("as it comes", None), ("TF32, older interface", _older), ("TF32, newer interface", _newer)):
        with _allowed(allow):
            found = judged(resnet(place.device), images.to(place.device)).cpu().double()
        error = float((found - expected).abs().max() / expected.abs().max())
        top = expected.topk(2, dim=1).values
        changed = (found.argmax(1) != expected.argmax(1)) & (top[:, 0] - top[:, 1] > MARGIN)
        rows.append(
            {"settings": name, "images": len(images), "error": error, "predictions changed": int(changed.sum())}
        )
        yield from expect(error <= LOGITS, f"logits, {name}: expected errors up to {LOGITS:g}, found {error:.2g}")
        yield from expect(not changed.any(), f"logits, {name}: {int(changed.sum())} predictions differ from the CPU's")
    yield table(rows)
    if not place.is_gpu:
        yield needs_a_gpu("TF32")


def _older() -> Callable[[], None]:
    """Allow TF32 by torch's older interface, and return how to take it back."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32
    cuda.allow_tf32, cudnn.allow_tf32 = True, True

    def back() -> None:
        cuda.allow_tf32, cudnn.allow_tf32 = before

    return back


def _newer() -> Callable[[], None]:
    """Allow TF32 by torch's newer interface, and return how to take it back."""
    backends: Any = torch.backends
    places = backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "tf32"

    def back() -> None:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision

    return back


@contextmanager
def _allowed(allow: Callable[[], Callable[[], None]] | None) -> Iterator[None]:
    back = allow() if allow else None
    try:
        yield
    finally:
        if back:
            back()
