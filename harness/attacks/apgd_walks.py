"""APGD's walk in L∞ and L2: with momentum, in steps that are halved once they no longer raise the loss.

Croce & Hein 2020, arXiv 2003.01690, Section 3. The walk of L1 is another one: see `harness.attacks.apgd_l1`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from harness.util import noise

RHO = 0.75
"""Share of steps that have to raise the loss (Section 3.1, condition 1)."""
MOMENTUM = 0.25
"""Share of the last move in the next one: 1 − α (Eq. 3)."""
TINY = 1e-12
"""Keeps a length from being 0 where it divides, as in the library."""


class Spot(NamedTuple):
    """Points with their losses and gradients.

    Args:
        points: float32 [w, d].
        gradients: of the loss, [w, d].
        losses: [w].
    """

    points: Tensor
    gradients: Tensor
    losses: Tensor


class Walk(ABC):
    """Walks of trials, one a slot. A trial sees the points number 0, its random start, to `last`."""

    last: int
    counts: Tensor | None
    """Mask of the points that end a trial when they are adversarial, bool [last + 1]; None: all do."""

    @abstractmethod
    def start(self, slots: Tensor, clean: Tensor, keys: Tensor, points: Tensor) -> None:
        """Forget what some slots held, and draw their random starts.

        Args:
            slots: int64 [k].
            clean: images, [k, d].
            keys: of the noise, int64 [k].
            points: [w, d]; the starts go to its rows ``slots``.
        """

    @abstractmethod
    def onward(self, seen: Tensor, here: Spot, best: Spot) -> Tensor:
        """Return the next points, [w, d].

        Args:
            seen: the numbers of the points ``here``, int64 [w].
            here: what has just been seen; left as it is.
            best: the highest losses so far, ``here`` among them; left as it is, but where a walk begins anew the loss
                becomes −∞.
        """


class Ball(ABC):
    """The ε-balls around clean images within the box [0, 1], one a slot; points are [w, d]."""

    @abstractmethod
    def start(self, slots: Tensor, clean: Tensor, keys: Tensor, points: Tensor) -> None:
        """Put balls into slots and draw a point of each; see `Walk.start`."""

    @abstractmethod
    def ascend(self, points: Tensor, gradients: Tensor, lengths: Tensor) -> Tensor:
        """Return the points, moved by ``lengths`` [w, 1] in the norm's direction of steepest ascent, within the ball.

        The gradients are used up.
        """

    @abstractmethod
    def project(self, points: Tensor) -> Tensor:
        """Put points back into the ball, in place."""


class Linf(Ball):
    """L∞: the direction is the sign of the gradient."""

    def __init__(self, slots: int, size: int, eps: float, device: torch.device | str) -> None:
        self._eps = eps
        self._low, self._high = torch.zeros(2, slots, size, device=device)

    def start(self, slots: Tensor, clean: Tensor, keys: Tensor, points: Tensor) -> None:
        """Scale uniform noise to the length ε; see `Ball.start`."""
        self._low[slots], self._high[slots] = (clean - self._eps).clamp_(0, 1), (clean + self._eps).clamp_(0, 1)
        drawn = 2 * noise.uniform(keys, torch.zeros_like(keys), tuple(clean.shape[1:])).to(clean) - 1
        longest = drawn.abs().amax(1, keepdim=True)
        points[slots] = (clean + self._eps * (drawn / (longest + TINY))).clamp_(0, 1)

    def ascend(self, points: Tensor, gradients: Tensor, lengths: Tensor) -> Tensor:
        """See `Ball.ascend`."""
        return self.project(torch.addcmul(points, gradients.sign_(), lengths, out=gradients))

    def project(self, points: Tensor) -> Tensor:
        """See `Ball.project`."""
        return points.clamp_(self._low, self._high)


class L2(Ball):
    """L2: the direction is that of the gradient."""

    def __init__(self, slots: int, size: int, eps: float, device: torch.device | str) -> None:
        self._eps = eps
        self._clean = torch.zeros(slots, size, device=device)

    def start(self, slots: Tensor, clean: Tensor, keys: Tensor, points: Tensor) -> None:
        """Scale normal noise to the length ε; see `Ball.start`."""
        self._clean[slots] = clean
        points[slots] = drawn = noise.normal(keys, torch.zeros_like(keys), tuple(clean.shape[1:])).to(clean)
        lengths = _length(points)[slots]  # of all slots: the bits of a sum may depend on how many rows are summed
        points[slots] = (clean + self._eps * (drawn / (lengths + TINY))).clamp_(0, 1)

    def ascend(self, points: Tensor, gradients: Tensor, lengths: Tensor) -> Tensor:
        """See `Ball.ascend`."""
        return self.project(torch.addcmul(points, gradients, lengths / (_length(gradients) + TINY), out=gradients))

    def project(self, points: Tensor) -> Tensor:
        """See `Ball.project`."""
        lengths = _length(points.sub_(self._clean))
        kept = lengths.clamp(max=self._eps) / (lengths + TINY)
        return torch.addcmul(self._clean, points, kept, out=points).clamp_(0, 1)


def _length(rows: Tensor) -> Tensor:
    """Return the Euclidean length of each row, [w, 1]."""
    result: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return result


class Momentum(Walk):
    """The walk of L∞ and L2 (Algorithm 1).

    Args:
        ball: the balls to stay in.
        slots: w.
        size: of an image, d.
        eps: the radius of the ball.
        steps: N_iter.
        device: of all tensors.
    """

    def __init__(self, ball: Ball, slots: int, size: int, eps: float, steps: int, device: torch.device | str) -> None:
        self.last = steps
        self.counts = None
        windows = checkpoints(steps)
        few = [RHO * windows[point] if point in windows else -1.0 for point in range(steps + 1)]
        self._few = torch.tensor(few).to(device)
        self._ball, self._eps = ball, eps
        self._previous, self._origin, self._move, self._work = torch.zeros(4, slots, size, device=device)
        self._lengths, self._share = torch.zeros(2, slots, 1, device=device)
        self._last_losses, self._rises, self._best_losses = torch.zeros(3, slots, device=device)
        self._halved = torch.zeros(slots, dtype=torch.bool, device=device)

    def start(self, slots: Tensor, clean: Tensor, keys: Tensor, points: Tensor) -> None:
        """See `Walk.start`."""
        self._ball.start(slots, clean, keys, points)
        self._previous[slots] = points[slots]
        self._lengths.index_fill_(0, slots, 2 * self._eps)
        self._share.index_fill_(0, slots, 1)
        self._last_losses.index_fill_(0, slots, torch.inf)
        self._rises.index_fill_(0, slots, 0)
        self._halved.index_fill_(0, slots, True)

    def onward(self, seen: Tensor, here: Spot, best: Spot) -> Tensor:
        """See `Walk.onward`."""
        halved = self._judge(seen, here, best)[:, None]
        self._lengths /= 1 + halved
        origin = torch.where(halved, best.points, here.points, out=self._origin)
        gradients = torch.where(halved, best.gradients, here.gradients, out=self._work)
        move = torch.sub(origin, self._previous, out=self._move)
        self._previous.copy_(origin)
        ascended = self._ball.ascend(origin, gradients, self._lengths)
        onward = torch.lerp(origin, ascended, self._share, out=self._origin).add_(move, alpha=MOMENTUM)
        self._share.fill_(1 - MOMENTUM)  # the first step goes all the way, and has no move before it
        return self._ball.project(onward)

    def _judge(self, seen: Tensor, here: Spot, best: Spot) -> Tensor:
        """Return whether a walk has to go on from its best point in steps of half the length, bool [w].

        At a checkpoint, because few steps since the last one have raised the loss, or because there has been no better
        point since, and steps were not halved there (Section 3.1, conditions 1 and 2).
        """
        self._rises += here.losses > self._last_losses
        # The library compares the first step's loss with a 0 instead of the loss at the start.
        self._last_losses.copy_(here.losses).masked_fill_(seen == 0, 0)
        few = self._few[seen]
        checkpoint = few >= 0
        stalled = ~self._halved & (self._best_losses >= best.losses)
        halved: Tensor = checkpoint & ((self._rises <= few) | stalled)
        torch.where(checkpoint, halved, self._halved, out=self._halved)
        torch.where(checkpoint, best.losses, self._best_losses, out=self._best_losses)
        self._rises.masked_fill_(checkpoint, 0)
        return halved


def checkpoints(steps: int) -> dict[int, int]:
    """Return the points at which a walk is judged, each with the number of steps since the one before.

    The first comes after 22 % of the steps, and each interval is 3 % shorter than the last one, but never below 6 %
    (Section 3.1).
    """
    windows: dict[int, int] = {}
    point = window = max(int(0.22 * steps), 1)
    while point <= steps:
        windows[point] = window
        window = max(window - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
        point += window
    return windows
