"""Planted defences: networks whose robustness is known better than a careless attack says, and healthy ones.

Each defence is a module with ``network``, what it defends, and ``surrogate``, the same answers as far as can be with an
honest gradient, which an adaptive attack follows (BPDA: Athalye et al. 2018, arXiv 1802.00420).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.models.demo import Demo

GREY = 16
"""Grey levels of a digit above black."""


class Backward(torch.autograd.Function):
    """The values of one tensor with the gradient of another one, changed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.change = change
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        (x,) = ctx.saved_tensors
        return None, ctx.change(gradient, x), None


def rounded(x: Tensor, levels: float) -> Tensor:
    """Values in steps, with the gradient of a step: zero."""
    return (levels * x).round() / levels


def hashed(x: Tensor) -> Tensor:
    """A whole number that changes with each image, [n, 1, 1, 1]."""
    weights = torch.arange(1, x[0].numel() + 1, dtype=torch.float64) ** 0.5
    return (x.flatten(1).double() @ weights * 1e4).round().long().view(-1, 1, 1, 1)


def from_hash(x: Tensor) -> Tensor:
    """Numbers in [−1, 1] that change with each image, all over it."""
    places = torch.arange(x[0].numel()).view(1, *x.shape[1:])
    return torch.sin((hashed(x) % 9973 + 1) * (places + 1) * 12.9898).float()


def cosines() -> Tensor:
    """Matrix of the discrete cosine transform of eight points."""
    k = torch.arange(8.0)
    matrix = torch.cos(math.pi / 8 * (k[None] + 0.5) * k[:, None]) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


class Defence(nn.Module):
    """A digits network behind a defence.

    Args:
        name: name of one of its methods.
        network: name of the digits network.
        where: where it is used, for those who ask.
    """

    def __init__(self, name: str, network: str = "digits_plain", where: str = "everywhere") -> None:
        super().__init__()
        self.network, self.name, self.where = Demo.model_validate({"name": network}).load().network, name, where
        self.decoy = nn.Conv2d(1, 10, 8, bias=False)
        with torch.no_grad():
            self.decoy.weight.copy_(torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1)) / 8)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = getattr(self, self.name)(x)
        return answer

    def surrogate(self, x: Tensor) -> Tensor:
        answer: Tensor = self.network(x)
        return answer

    # --- inputs without a gradient ---

    def quantised(self, x: Tensor) -> Any:
        return self.network(rounded(x, 8))

    def jpeg(self, x: Tensor) -> Any:
        matrix = cosines()
        return self.network(matrix.T @ rounded(matrix @ x @ matrix.T, 4) @ matrix)

    def thermometer(self, x: Tensor) -> Any:
        levels = (torch.arange(GREY) + 0.5).view(-1, 1, 1) / GREY
        return self.network((x > levels).float().mean(1, keepdim=True) + 0 * x)

    def steep_steps(self, x: Tensor) -> Any:
        levels = (torch.arange(8) + 0.5).view(-1, 1, 1) / 8
        return self.network((2000 * (x - levels)).sigmoid().mean(1, keepdim=True))

    def one_pixel(self, x: Tensor) -> Any:
        only = torch.zeros_like(x)
        only[:, :, 0, 0] = 1
        return self.network(x * only + (x * (1 - only)).detach())

    # --- gradients of something else ---

    def wrong_sign(self, x: Tensor) -> Any:
        return self.network(Backward.apply(x, x, lambda g, _: -g))

    def decoyed(self, x: Tensor) -> Any:
        decoy = self.decoy(x).flatten(1)
        return self.network(x).detach() + decoy - decoy.detach()

    def stopped(self, x: Tensor) -> Any:
        decoy = 1e-6 * self.decoy(x).flatten(1)
        return self.network(x).detach() + decoy - decoy.detach()

    def hash_signed(self, x: Tensor) -> Any:
        return self.network(Backward.apply(x, x, lambda g, y: g * from_hash(y).sign()))

    def shuffled(self, x: Tensor) -> Any:
        return self.network(Backward.apply(x, x, lambda g, _: g.transpose(2, 3).flip(2)))

    def checkered(self, x: Tensor) -> Any:
        signs = 1 - 2 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2)
        return self.network(Backward.apply(x, x, lambda g, _: g * signs))

    def averaged(self, x: Tensor) -> Any:
        return self.network(Backward.apply(x, x, lambda g, _: g.mean((2, 3), keepdim=True).expand_as(g)))

    def late(self, x: Tensor) -> Any:
        """Wrong only away from the digits' own grey levels, so not at a clean image."""

        def change(gradient: Tensor, y: Tensor) -> Tensor:
            clean = ((GREY * y).round() == GREY * y).flatten(1).all(1).view(-1, 1, 1, 1)
            return torch.where(clean, gradient, -gradient)

        return self.network(Backward.apply(x, x, change))

    def exploding(self, x: Tensor) -> Any:
        return self.network(Backward.apply(x, x, lambda g, y: g * 1e20 * from_hash(y) * 1e20))

    # --- rough answers ---

    def sines(self, x: Tensor) -> Any:
        return self.network(x + 0.01 * torch.sin(2000 * x))

    def members(self, x: Tensor) -> Any:
        """One of three decoys, as the image has it, leads away from what answers."""
        decoys = torch.stack([self.decoy(x.roll(k, 3)).flatten(1) for k in range(3)])
        one = decoys.gather(0, (hashed(x) % 3).view(1, -1, 1).expand(1, -1, 10))[0]
        return self.network(x).detach() + one - one.detach()

    def k_winners(self, x: Tensor) -> Any:
        flat = x.flatten(1)
        smallest = flat.topk(24, 1).values[:, -1:]
        return self.network((flat * (flat >= smallest)).view_as(x))

    # --- answers that saturate ---

    def rounded_answers(self, x: Tensor) -> Any:
        return rounded(self.network(x), 2)

    def saturated(self, x: Tensor) -> Any:
        return 1e5 * self.network(x)

    def ensemble(self, x: Tensor) -> Any:
        """The mean of probabilities, of members that are sure of themselves."""
        members = [self.network(x.roll(k, 3)) for k in (0, 0, 0, 1)]
        return torch.stack([(20 * member).softmax(1) for member in members]).mean(0).clamp(min=1e-7).log()

    def clipped(self, x: Tensor) -> Any:
        logits = self.network(x)
        return logits.clamp(-1, 1) + 1e-3 * logits.detach()

    def rejecting(self, x: Tensor) -> Any:
        """Unsure, it lets no gradient through."""
        logits = self.network(x)
        top = logits.topk(2, 1).values
        sure = (top[:, 0] - top[:, 1] > 8)[:, None]
        return torch.where(sure, logits, logits.detach())

    # --- chance ---

    def noise(self, x: Tensor) -> Any:
        return self.network(x + 0.2 * torch.randn_like(x))

    def dropout(self, x: Tensor) -> Any:
        return self.network(F.dropout(x, 0.2))

    def shift(self, x: Tensor) -> Any:
        return self.network(x.roll(int(torch.randint(-1, 2, ())), 3))

    # --- healthy ---

    def plain(self, x: Tensor) -> Any:
        return self.network(x)

    def times_10(self, x: Tensor) -> Any:
        return 10 * self.network(x)

    def times_100(self, x: Tensor) -> Any:
        return 100 * self.network(x)

    def times_100000(self, x: Tensor) -> Any:
        return 1e5 * self.network(x)

    def temperature(self, x: Tensor) -> Any:
        return self.network(x) / 100

    def float64(self, x: Tensor) -> Any:
        return self.network.double()(x.double())

    def far_below(self, x: Tensor) -> Any:
        return self.network(x) - 1e6 * F.one_hot(torch.tensor(9), 10)

    def offset(self, x: Tensor) -> Any:
        return self.network(x) + 1e3

    def log_probabilities(self, x: Tensor) -> Any:
        return self.network(x).log_softmax(1)

    def median(self, x: Tensor) -> Any:
        patches = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
        return self.network(0.5 * x + 0.5 * patches.median(-1).values)
