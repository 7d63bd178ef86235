"""APGD's walk in L1: steps as sparse as the best point suggests, in balls that shrink to ε.

Croce & Hein 2021, arXiv 2103.01208, Section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.attacks.apgd_walks import Spot, Walk
from harness.attacks.l1_ball import nth_smallest, shrunk
from harness.util import noise

DENSITY = 0.2
"""Share of the coordinates that the first steps move."""
SPARSER = 1.5
"""Ratio of the coordinates that the best point has moved to those that a step moves."""
SHORTER = 1.5
"""Divisor of the step length at each check of sparsity."""
ENOUGH = 0.95
"""Ratio of moved coordinates, now to before, below which steps become as long as the radius again."""
SHORTEST = 10
"""Ratio of the radius to the length of the shortest step."""
TINY = 1e-10
"""Keeps a count from being 0 where it divides, as in the library."""


class Sparse(Walk):
    """The walk of L1 (Algorithm 1).

    Args:
        slots: w.
        size: of an image, d.
        eps: the radius of the ball.
        steps: N_iter; with ``larger_radii`` at least 2.
        larger_radii: whether to begin in larger balls, as AutoAttack's standard version does; see `phases`.
        device: of all tensors.
    """

    def __init__(
        self, slots: int, size: int, eps: float, steps: int, larger_radii: bool, device: torch.device | str
    ) -> None:
        spans = phases(eps, steps) if larger_radii else [(eps, steps)]
        radii, flags = [], []
        for number, (radius, length) in enumerate(spans):
            last = number == len(spans) - 1
            every = max(int(0.04 * length), 1)
            for point in range(length + 1):
                ends = point == length and not last
                looks = point % every == 0 if point else larger_radii
                radii.append((radius, spans[number + 1][0] if ends else radius))
                flags.append((looks, ends, last))
        self.last = len(flags) - 1
        self.counts = torch.tensor(flags)[:, 2].to(device)
        self._flags = torch.tensor(flags)[:, :2].to(device)
        self._size, self._larger_radii = size, larger_radii
        self._clean, self._origin, self._gradients, self._work = torch.zeros(4, slots, size, device=device)
        self._lengths, self._densities, self._moved = torch.zeros(3, slots, 1, device=device)
        self._radii = torch.tensor(radii).to(self._clean)

    def start(self, slots: Tensor, clean: Tensor, keys: Tensor, points: Tensor) -> None:
        """Project normal noise; see `Walk.start`."""
        self._clean[slots] = clean
        self._work[slots] = noise.normal(keys, torch.zeros_like(keys), tuple(clean.shape[1:])).to(clean)
        # In all slots: the bits of a sum may depend on how many rows are summed.
        radius = self._radii[0, 0].expand_as(self._lengths)
        starts = self._clean + self._work
        moves = starts - self._clean if self._larger_radii else self._work
        starts += shrunk(moves, self._clean, radius)
        if self._larger_radii:  # once more, as in the library: what rounding leaves of a move counts, see `onward`
            starts += shrunk(starts - self._clean, self._clean, radius)
        points[slots] = starts.clamp_(0, 1)[slots]
        self._lengths[slots] = radius[slots]
        self._densities.index_fill_(0, slots, DENSITY)
        self._moved.index_fill_(0, slots, torch.inf if self._larger_radii else self._size)

    def onward(self, seen: Tensor, here: Spot, best: Spot) -> Tensor:
        """See `Walk.onward`.

        A coordinate counts as moved unless it is the clean one to the last bit: hence sums in the library's order.
        """
        radius, following = self._radii[seen][:, :, None].unbind(1)
        looks, ends = self._flags[seen][:, :, None].unbind(1)
        sparser = self._adapt(looks, radius, best)
        origin = torch.where(sparser, best.points, here.points, out=self._origin)
        gradients = torch.where(sparser, best.gradients, here.gradients, out=self._gradients)

        heights = torch.abs(gradients, out=self._work)
        rank = ((1 - self._densities) * self._size).clamp_(0, self._size - 1).long()
        signs = gradients.sign_().mul_(heights >= nth_smallest(heights, rank))
        lengths = self._lengths / (torch.abs(signs, out=self._work).sum(1, keepdim=True) + TINY)
        stepped = torch.addcmul(origin, signs, lengths, out=origin)

        # A phase that ends hands its best point over, projected into the next ball, and is forgotten.
        moves = torch.where(ends, best.points, stepped, out=self._origin).sub_(self._clean)
        onward = torch.where(ends, best.points, self._clean + moves)
        best.losses.masked_fill_(ends[:, 0], -torch.inf)
        self._moved.masked_fill_(ends, torch.inf)
        onward.add_(shrunk(moves, self._clean, following))
        # Only starts are clamped, as in the library: a projection keeps to the box, unless the clean image is outside.
        return onward.clamp_(torch.where(ends, 0.0, -torch.inf), torch.where(ends, 1.0, torch.inf))

    def _adapt(self, looks: Tensor, radius: Tensor, best: Spot) -> Tensor:
        """Adapt steps to the best points where a walk ``looks``, and return where walks go on from them.

        Where these have become sparser, or are the first of their phase; bool [w, 1].
        """
        moved = torch.ne(best.points, self._clean, out=self._work).sum(1, keepdim=True)
        sparser: Tensor = looks & (moved / self._moved < ENOUGH)
        shorter = torch.maximum(self._lengths / SHORTER, radius / SHORTEST)
        torch.where(looks, shorter, self._lengths, out=self._lengths)
        torch.where(sparser, radius, self._lengths, out=self._lengths)
        torch.where(looks, moved / self._size / SPARSER, self._densities, out=self._densities)
        torch.where(looks, moved, self._moved, out=self._moved)
        return sparser


def phases(eps: float, steps: int) -> list[tuple[float, int]]:
    """Return the radii in which a walk searches, and how many steps in each; only what it finds in the last one counts.

    30 % of the steps in 3 ε, 30 % in 2 ε, the rest in ε (Section 3, "multi-ε").
    """
    few = math.ceil(0.3 * steps)
    return [(3 * eps, few), (2 * eps, few), (eps, steps - 2 * few)]
