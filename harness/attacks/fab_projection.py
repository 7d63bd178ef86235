"""FAB's projections onto a hyperplane within the box [0, 1]^d (arXiv 1907.02044, Section 2), without sorting.

A point goes to the hyperplane in one direction per coordinate, and no coordinate leaves the box. How far they go is
one number for each point, at which a concave piecewise-linear function reaches a goal. Sorting its kinks finds it; a
few of Newton's steps find it sooner. The results are those of ``pyautoattack.fab_projections`` but for rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEGLIGIBLE = 1e-8
"""Under L2, a coordinate with a smaller weight is not moved, as in the library …"""
UNLIMITED = 1e12
"""… and no coordinate goes further along the normal than this."""


def linf(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """The shortest move, in L∞, onto the hyperplane within the box; each coordinate moves as far as the farthest may.

    Where the box does not reach the hyperplane, or a number of the row is NaN: to the corner of the box nearest to it.

    Args:
        points: [n, d], in [0, 1].
        normals: w, [n, d].
        offsets: b, [n]; the hyperplane is <w, z> = b.

    Returns:
        What to add to the points, [n, d]; 0 where the normal is 0.
    """
    way = _way(points, normals, offsets)
    reach = (way.weights * way.room).sum(1)
    level = _level(way.room, way.weights, way.excess, beyond=~(way.excess < reach))
    moves = torch.minimum(way.room, level[:, None])
    return torch.where(way.up, moves, -moves).mul_(way.weights != 0)


def l2(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """The shortest move, in L2, onto the hyperplane within the box: along the normal until the box stops a coordinate.

    Where the box does not reach the hyperplane: to the corner of the box nearest to it. A row with a NaN is all NaN.

    Args:
        points: [n, d], in [0, 1].
        normals: w, [n, d].
        offsets: b, [n]; the hyperplane is <w, z> = b.

    Returns:
        What to add to the points, [n, d]; 0 where the normal is negligible.
    """
    way = _way(points, normals, offsets)
    moved = way.weights > NEGLIGIBLE
    limits = (way.room / way.weights).masked_fill_(~moved, UNLIMITED).clamp_(max=UNLIMITED)
    reach = (limits * way.weights).mul_(moved).mul_(way.weights).sum(1)
    level = _level(limits, way.weights**2, way.excess, beyond=way.excess > reach)
    level.masked_fill_((way.excess - reach).isnan(), torch.nan)
    moves = torch.minimum(limits, level[:, None]).mul_(way.weights)
    return torch.where(way.up, moves, -moves).mul_(moved)


class _Way(NamedTuple):
    """How points may approach their hyperplanes: <w, z> has to fall, w being turned so that it has to.

    Args:
        excess: by how much, [n], at least 0.
        up: the coordinates that have to rise for it, [n, d].
        weights: |w|, by how much it falls for each unit that a coordinate moves, [n, d].
        room: how far the box lets a coordinate move, [n, d].
    """

    excess: Tensor
    up: Tensor
    weights: Tensor
    room: Tensor


def _way(points: Tensor, normals: Tensor, offsets: Tensor) -> _Way:
    excess = (normals * points).sum(1) - offsets
    up = torch.where((excess >= 0)[:, None], normals, -normals) < 0
    return _Way(excess.abs(), up, normals.abs(), torch.where(up, 1 - points, points))


def _level(limits: Tensor, slopes: Tensor, goal: Tensor, beyond: Tensor) -> Tensor:
    """The least λ ≥ 0 at which Σ slopes · min(limits, λ) = goal, [n]; infinite where that is ``beyond`` reach.

    Newton's method from 0: the sum is concave in λ, so a step never goes too far, and it only depends on which limits
    λ has not reached. A row at which these stay the same has arrived, and repeats its λ to the last bit while the
    others go on; so its result does not depend on them. NaN leaves a row at 0.
    """
    level = torch.zeros_like(goal).masked_fill_(beyond, torch.inf)
    stopped = slopes * limits
    free, part = torch.empty_like(limits), torch.empty_like(limits)  # large: made once
    while True:
        torch.gt(limits, level[:, None], out=free)  # 1 or 0
        slope = torch.mul(slopes, free, out=part).sum(1)
        done = torch.addcmul(stopped, stopped, free, value=-1, out=part).sum(1)
        further = torch.fmax(level, (goal - done) / slope)
        if torch.equal(further, level):
            return level
        level = further
