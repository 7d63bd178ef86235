"""Networks that several tests attack, the digits that they get right, and wrappers that show or spoil what they do."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from harness.api.attack import Network
from harness.attacks.norms import Norm
from harness.datasets.digits import Digits
from harness.models.demo import Demo


@cache
def network_of(name: str) -> nn.Module:
    return Demo(name=name).load().network.float().requires_grad_(False)


@cache
def digits(name: str, n: int, black_and_white: bool = False) -> tuple[Tensor, Tensor]:
    """Of the first n digits those that a demo network classifies correctly."""
    batch = Digits().open().read(tuple(range(n)))
    x = (batch.x > 0.5).float() if black_and_white else batch.x
    right = network_of(name)(x).argmax(1) == batch.y
    return x[right], batch.y[right]


class Recorded:
    """A network that remembers the images that it was shown, and its answers."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.images: list[Tensor] = []
        self.answers: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        self.images.append(x.detach().clone())
        self.answers.append(logits.detach().argmax(1))
        return logits


class Wrong(nn.Module):
    """A network that answers the opposite."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *rows: Tensor) -> Tensor:
        return -self.network(x, *rows)  # type: ignore[no-any-return]


def beside_a_boundary(
    w: Tensor, b: Tensor, norm: Norm, eps: float, n: int, spread: float, tolerance: float = 0.01
) -> tuple[Tensor, Tensor, Tensor]:
    """Return points on both sides of the boundary <w, x> = b, with labels and distances, for a closed form.

    The margin is <w, x> − b, and the least move that closes it is the margin over the dual norm of w.

    Args:
        w: normal, [d].
        b: offset.
        norm: norm of the distances.
        eps: radius of the ball; distances reach from 0 to twice that.
        n: number of points, those close to ε included.
        spread: standard deviation of a coordinate before the point is moved.
        tolerance: share of ε around ε in which a point is left out, since rounding would decide.

    Returns:
        Points [m, d] whose balls are within the box; labels [m]: 1 where the margin is negative; distances [m].
    """
    drawn = torch.Generator().manual_seed(0)
    x = 0.5 + spread * torch.randn(n, len(w), generator=drawn)
    dual = torch.linalg.vector_norm(w, {"Linf": 1, "L2": 2, "L1": torch.inf}[norm])
    goal = (torch.rand(n, generator=drawn) * 2 - 1) * 2 * eps * dual
    x += ((goal - (x @ w - b)) / w.norm() ** 2)[:, None] * w
    distances = (x @ w - b).abs() / dual
    clear = (distances / eps - 1).abs() > tolerance
    x, distances = x[clear], distances[clear]
    assert x.min() > eps  # the box does not matter
    assert x.max() < 1 - eps
    return x, (x @ w < b).long(), distances
