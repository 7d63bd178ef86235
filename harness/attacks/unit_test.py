"""Attack unit test: does the attack find an adversarial example that is known to be there?

Zimmermann et al. 2022, "Increasing confidence in adversarial robustness evaluations" (NeurIPS): on the network's own
features a binary readout is put that has an adversarial example by construction, so that a strong attack must find one.
An attack that does not is too weak for the network, and what survives it shows no robustness.

The features are the logits, so that whatever masks a gradient lies before the readout, and the readout is a random
direction in them. A short random search without gradients goes up this direction; what it reaches is the planted
example, and the boundary is put just before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from harness.api.attack import Attack, Network, Trials, run_to_the_end
from harness.attacks.square import Square

if TYPE_CHECKING:
    from torch import Tensor

    from harness.attacks.norms import Norm
    from harness.util.noise import Noise

QUERIES = 100
"""Queries of the search that plants an example."""
REACH = 0.9
"""Share of the way to the planted example at which the boundary is."""
ROUNDING = 1e-4
"""Way, as a share of the clean logits, below which it may be rounding, and nothing is planted."""
CLASSES = 4
"""Logits of a readout: two classes, and two that are far behind, since the targeted DLR loss ranks four."""


class Readout(NamedTuple):
    """Binary classifiers on the logits, one for each image: class 0 on the clean image, class 1 on the planted one.

    Args:
        origin: logits of the clean images, [n, classes].
        direction: direction in the logits that leads to the planted images, [n, classes].
        length: way to the planted image in this direction, [n]; above 0.
    """

    origin: Tensor
    direction: Tensor
    length: Tensor

    def way(self, logits: Tensor) -> Tensor:
        """Return how far logits [n, classes] have come, as a share of the way to the planted image, [n]."""
        way: Tensor = ((logits - self.origin) * self.direction).sum(1) / self.length
        return way

    def __call__(self, logits: Tensor) -> Tensor:
        """Return logits [n, 4] on logits [n, classes] of the network; class 1 beyond the boundary."""
        lead = REACH - self.way(logits)
        others = lead.new_tensor([0.0, -1.0, -2.0]).expand(len(lead), -1)
        return torch.cat([lead[:, None], others], 1)

    def part(self, which: Tensor) -> Readout:
        """Return the classifiers of some of the images, by their numbers, int64 [k]."""
        return Readout(self.origin[which], self.direction[which], self.length[which])


def plant(network: Network, x: Tensor, noise: Noise, norm: Norm, eps: float) -> tuple[Readout, Tensor]:
    """Plant an adversarial example beside each image.

    Args:
        network: network from images [n, c, h, w] in [0, 1] to logits [n, classes].
        x: clean images, float32 [n, c, h, w].
        noise: source of the directions and of the search.
        norm: norm of the ball.
        eps: its radius, in pixels.

    Returns:
        The readouts, and where there is an example, bool [n]: not where the search has not got on, as where the ball
        leaves the logits as they are.
    """
    with torch.no_grad():
        origin = network(x)
        direction = noise.normal((origin.shape[1],))
        direction -= direction.mean(1, keepdim=True)  # what is added to all logits does not matter
        spread = (origin.amax(1) - origin.median(1).values).clamp(min=torch.finfo(origin.dtype).tiny)
        upwards = Readout(origin, direction, spread)

        def margin_out_of_reach(images: Tensor) -> Tensor:
            margin = (-upwards.way(network(images))).exp()
            return torch.stack([margin, torch.zeros_like(margin)], 1)

        search = Square(len(x), tuple(x.shape[1:]), norm=norm, eps=eps, queries=QUERIES, device=x.device)
        run(search, margin_out_of_reach, x, keys_of(noise))
        length = upwards.way(network(search.found)) * spread
    planted = length > ROUNDING * (origin * direction).abs().amax(1)
    return Readout(origin, direction, torch.where(planted, length, 1.0)), planted


class Planted(nn.Module):
    """A network with readouts on its logits, which have an adversarial example by construction.

    Args:
        network: network from images [n, c, h, w] to logits.
        readout: a readout for each image.
    """

    def __init__(self, network: Network, readout: Readout) -> None:
        super().__init__()
        self.logits, self.readout = network, readout

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, 4] of the same images, perturbed."""
        return self.readout(self.logits(x))


def run(attack: Attack, network: Network, x: Tensor, keys: Tensor, variant: int = 0) -> None:
    """Run an attack from class 0 to class 1 on all images at once, to its end."""
    slots = torch.arange(len(x), device=x.device)
    zero = torch.zeros_like(slots)
    attack.start(slots, Trials(x, zero, zero + 1, keys, zero + variant))
    run_to_the_end(attack, network)


def keys_of(noise: Noise) -> Tensor:
    """Return fresh keys for an attack that draws by itself, int64 [n]."""
    return noise.integers((), 1 << 31)
