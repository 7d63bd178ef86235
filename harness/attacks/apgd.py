"""AutoPGD as a step machine (Croce & Hein 2020, arXiv 2003.01690, Algorithm 1): PGD without a step size to choose.

It ascends a loss within the ball and checks each point on its way. Trajectories are those of
``pyautoattack.autopgd_base`` up to rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.api.attack import Attack, Network, Trials
from harness.attacks.apgd_l1 import Sparse
from harness.attacks.apgd_losses import CE, Losses
from harness.attacks.apgd_walks import L2, Linf, Momentum, Spot, Walk
from harness.attacks.norms import Norm


class APGD(Attack):
    """APGD, each trial on a loss of its own: `Trials.variants` holds `CE`, `DLR` or `TARGETED_DLR`; without it, `CE`.

    The first step looks at the random start, each later one at the next point of the walk.

    Args:
        slots: w, how many trials advance at once.
        shape: of an image: c, h, w.
        norm: of the ball.
        eps: its radius, in pixels.
        steps: N_iter, at least 1; a trial that survives takes one step of the machine more, for its start, and
            with ``larger_radii`` one for each of its three.
        larger_radii: in L1, whether to begin in larger balls, as AutoAttack's standard version does.
        gradients: passes of the network whose gradients are averaged in a step: 20 for random networks ("EOT").
        device: of all tensors.
    """

    capturable = True

    def __init__(
        self,
        slots: int,
        shape: tuple[int, ...],
        *,
        norm: Norm,
        eps: float,
        steps: int = 100,
        larger_radii: bool = False,
        gradients: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        size = math.prod(shape)
        self.forwards = self.backwards = gradients
        self._walk: Walk
        if norm == "L1":
            self._walk = Sparse(slots, size, eps, steps, larger_radii, device)
        else:
            ball = {"Linf": Linf, "L2": L2}[norm](slots, size, eps, device)
            self._walk = Momentum(ball, slots, size, eps, steps, device)
        self._losses = Losses(slots, device)
        self._seen = torch.zeros(slots, dtype=torch.int64, device=device)
        points, best, best_gradients = torch.zeros(3, slots, size, device=device)
        self._points, self._best = points, Spot(best, best_gradients, torch.zeros(slots, device=device))
        self.fooled = torch.zeros(slots, dtype=torch.bool, device=device)
        self.finished = torch.ones(slots, dtype=torch.bool, device=device)
        self.found = points.view(slots, *shape)  # a trial that has fooled the network stays where it did

    @torch.no_grad()
    def start(self, slots: Tensor, trials: Trials) -> None:
        """See `Attack.start`."""
        self._seen.index_fill_(0, slots, 0)
        kinds = torch.full_like(trials.y, CE) if trials.variants is None else trials.variants
        self._losses.start(slots, trials.y, trials.targets, kinds)
        self._best.losses.index_fill_(0, slots, -torch.inf)
        self.fooled.index_fill_(0, slots, False)
        self.finished.index_fill_(0, slots, False)
        self._walk.start(slots, trials.x.flatten(1), trials.keys, self._points)

    @torch.no_grad()
    def step(self, network: Network) -> None:
        """See `Attack.step`."""
        here, wrong = self._look(network)
        wrong &= ~self.finished
        if self._walk.counts is not None:
            wrong &= self._walk.counts[self._seen]
        self.fooled |= wrong
        self.finished |= wrong | (self._seen == self._walk.last)
        better = here.losses > self._best.losses
        for value, best in zip(here, self._best, strict=True):
            torch.where(better if value.ndim == 1 else better[:, None], value, best, out=best)
        onward = self._walk.onward(self._seen, here, self._best)
        torch.where(self.finished[:, None], self._points, onward, out=self._points)
        self._seen += ~self.finished

    def _look(self, network: Network) -> tuple[Spot, Tensor]:
        """Return what the network says of the points, and whether it is wrong, bool [w]; of several passes the last."""
        images = self.found.detach().requires_grad_()
        total: Tensor | None = None
        for _ in range(self.forwards):
            with torch.enable_grad():
                logits = network(images)
            losses, by_logits = self._losses.ascent(logits.detach())
            with torch.enable_grad():  # a sum, since grad(logits, images, by_logits) would import SymPy
                weighted = (logits * by_logits).sum()
            (gradients,) = torch.autograd.grad(weighted, images)
            total = gradients if total is None else total + gradients
        assert total is not None
        mean = total if self.forwards == 1 else total / self.forwards
        return Spot(self._points, mean.flatten(1), losses), logits.argmax(1) != self._losses.y
