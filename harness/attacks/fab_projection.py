"""FAB's projections onto a hyperplane within the box [0, 1]^d (arXiv 1907.02044, Section 2), without sorting.

Each coordinate of a point moves in one direction, towards the hyperplane, until the box stops it. The length of the
move is one number λ for each point, at which a concave piecewise-linear function reaches a target. The library sorts
the function's kinks to find λ; a few Newton steps are faster. The results are those of
``pyautoattack.fab_projections`` up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEGLIGIBLE = 1e-8
"""Weight |w| up to which a coordinate is not moved under L2, as in the library."""
UNLIMITED = 1e12
"""Longest move of a coordinate along the normal under L2, as in the library."""


def linf(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """Compute the shortest moves in L∞ that take points to their hyperplanes within the box.

    Where the box does not meet the hyperplane, or a number of the row is NaN, the move leads to the corner of the box
    nearest to the hyperplane.

    Args:
        points: points t in [0, 1]^d, [n, d].
        normals: normals w of the hyperplanes <w, z> = b, [n, d].
        offsets: offsets b of the hyperplanes, [n].

    Returns:
        The moves to be added to the points, [n, d]; 0 in coordinates where the normal is 0.
    """
    approach = _approach(points, normals, offsets)
    reach = (approach.weights * approach.room).sum(1)
    level = _level(approach.room, approach.weights, approach.excess, beyond=~(approach.excess < reach))
    moves = torch.minimum(approach.room, level[:, None])
    return torch.where(approach.up, moves, -moves).mul_(approach.weights != 0)


def l2(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """Compute the shortest moves in L2 that take points to their hyperplanes within the box.

    Where the box does not meet the hyperplane, the move leads to the corner of the box nearest to it. A row with a NaN
    gives a row of NaN.

    Args:
        points: points t in [0, 1]^d, [n, d].
        normals: normals w of the hyperplanes <w, z> = b, [n, d].
        offsets: offsets b of the hyperplanes, [n].

    Returns:
        The moves to be added to the points, [n, d]; 0 in coordinates where the normal is negligible.
    """
    approach = _approach(points, normals, offsets)
    moved = approach.weights > NEGLIGIBLE
    limits = (approach.room / approach.weights).masked_fill_(~moved, UNLIMITED).clamp_(max=UNLIMITED)
    reach = (limits * approach.weights).mul_(moved).mul_(approach.weights).sum(1)
    level = _level(limits, approach.weights**2, approach.excess, beyond=approach.excess > reach)
    level.masked_fill_((approach.excess - reach).isnan(), torch.nan)
    moves = torch.minimum(limits, level[:, None]).mul_(approach.weights)
    return torch.where(approach.up, moves, -moves).mul_(moved)


class _Approach(NamedTuple):
    """Directions and limits of the moves, with every normal oriented so that <w, z> must decrease.

    Args:
        excess: amount by which <w, z> must decrease, [n], at least 0.
        up: mask of the coordinates that must increase to that end, [n, d].
        weights: decrease of <w, z> per unit that a coordinate moves, |w|, [n, d].
        room: distance that a coordinate may move within the box, [n, d].
    """

    excess: Tensor
    up: Tensor
    weights: Tensor
    room: Tensor


def _approach(points: Tensor, normals: Tensor, offsets: Tensor) -> _Approach:
    excess = (normals * points).sum(1) - offsets
    up = torch.where((excess >= 0)[:, None], normals, -normals) < 0
    return _Approach(excess.abs(), up, normals.abs(), torch.where(up, 1 - points, points))


def _level(limits: Tensor, slopes: Tensor, target: Tensor, beyond: Tensor) -> Tensor:
    """Solve Σ slopes · min(limits, λ) = target for the least λ ≥ 0, [n]; infinite where ``beyond`` is set.

    Newton's method from 0. The sum is concave in λ, so a step never overshoots, and a step depends only on the set of
    limits above λ. A row whose set stays the same has converged and repeats its λ to the last bit while the others go
    on, so its result does not depend on theirs. A row with NaN stays at 0.
    """
    level = torch.zeros_like(target).masked_fill_(beyond, torch.inf)
    at_limit = slopes * limits
    free, buffer = torch.empty_like(limits), torch.empty_like(limits)  # large: allocated once
    while True:
        torch.gt(limits, level[:, None], out=free)  # 1 or 0
        slope = torch.mul(slopes, free, out=buffer).sum(1)
        constant = torch.addcmul(at_limit, at_limit, free, value=-1, out=buffer).sum(1)
        next_level = torch.fmax(level, (target - constant) / slope)
        if torch.equal(next_level, level):
            return level
        level = next_level
