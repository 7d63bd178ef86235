"""Networks that several tests attack, the digits that they get right, and wrappers that show or spoil what they do."""

from __future__ import annotations

from functools import cache

from torch import Tensor, nn

from harness.api.attack import Network
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
