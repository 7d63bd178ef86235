"""FAB's projections onto a hyperplane within the box [0, 1]^d (arXiv 1907.02044, Section 2), without waiting for a GPU.

A point goes to the hyperplane in one direction per coordinate, and no coordinate leaves the box. How far they go is
one number for each point, at which a concave piecewise-linear function reaches a goal. Sorting its kinks finds it; a
few of Newton's steps find it sooner. The results are those of ``pyautoattack.fab_projections`` but for rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NEGLIGIBLE = 1e-8
"""Under L2 and L1, a coordinate with no larger weight is not moved, as in the library."""
FIRST = 256
"""So many coordinates, those of most weight, are as a rule more than L1 needs; only if not are all of them sorted."""
STEPS = 20
"""Newton's steps at most; weights over twelve orders of magnitude take as many."""


def linf(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """The shortest move, in L∞, onto the hyperplane within the box; each coordinate moves as far as the farthest may.

    Where the box does not reach the hyperplane, or a number of the row is NaN: to the corner of the box nearest to it.

    Args:
        points: [..., n, d], in [0, 1]; several, along the first dimension, may share a hyperplane.
        normals: w, [n, d].
        offsets: b, [n]; the hyperplane is <w, z> = b.

    Returns:
        What to add to the points, [..., n, d]; 0 where the normal is 0.
    """
    way = _way(points, normals, offsets)
    level = _level(way.room, way.weights, way.gains, way.excess, beyond=~(way.excess < way.reach))
    return torch.minimum(way.room, level[..., None]).mul_(way.signs)


def l2(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """The shortest move, in L2, onto the hyperplane within the box: along the normal until the box stops a coordinate.

    Where the box does not reach the hyperplane: to the corner of the box nearest to it. A row with a NaN is all NaN.

    Args:
        points: [..., n, d], in [0, 1]; several, along the first dimension, may share a hyperplane.
        normals: w, [n, d].
        offsets: b, [n]; the hyperplane is <w, z> = b.

    Returns:
        What to add to the points, [..., n, d]; 0 where the normal is negligible.
    """
    way = _way(points, F.hardshrink(normals, NEGLIGIBLE), offsets)
    limits = way.room / way.weights.clamp(min=NEGLIGIBLE)
    level = _level(limits, way.weights.square(), way.gains, way.excess, beyond=way.excess > way.reach)
    level.masked_fill_((way.excess - way.reach).isnan(), torch.nan)
    return torch.minimum(limits, level[..., None]).mul_(way.weights).mul_(way.signs)


def l1(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """The shortest move, in L1, onto the hyperplane within the box: coordinates of great weight go first, to the wall.

    Where the box does not reach the hyperplane: to the corner of the box nearest to it.

    Args:
        points: [..., n, d], in [0, 1]; several, along the first dimension, may share a hyperplane.
        normals: w, [n, d].
        offsets: b, [n]; the hyperplane is <w, z> = b.

    Returns:
        What to add to the points, [..., n, d]; 0 where the normal is negligible.
    """
    way = _way(points, F.hardshrink(normals, NEGLIGIBLE), offsets)
    if way.room.device.type != "cpu" or way.room.shape[-1] <= FIRST:
        return _by_turns(way, way.weights.argsort(dim=-1, descending=True, stable=True))[0]
    moves, arrived = _by_turns(way, way.weights.topk(FIRST).indices)  # a CPU takes many times as long to sort them all
    if arrived.all():
        return moves
    others = _by_turns(way, way.weights.argsort(dim=-1, descending=True, stable=True))[0]
    return torch.where(arrived[..., None], moves, others)


def _by_turns(way: _Way, order: Tensor) -> tuple[Tensor, Tensor]:
    """Let coordinates go to the wall one after the other, in ``order`` [n, k], until the hyperplane is reached.

    Returns:
        The moves, [..., n, d]; whether they reach it, [..., n].
    """
    weights, order = way.weights.gather(-1, order), order.expand(*way.room.shape[:-1], -1)
    gains = way.gains.gather(-1, order)
    after = gains.cumsum(-1)
    left = (way.excess[..., None] - (after - gains)).clamp_(min=0)
    moves = torch.minimum(way.room.gather(-1, order), left.div_(weights.clamp_(min=NEGLIGIBLE)))
    return torch.zeros_like(way.room).scatter_(-1, order, moves).mul_(way.signs), way.excess <= after[..., -1]


class _Way(NamedTuple):
    """How points may approach their hyperplanes: |<w, z> − b| has to fall.

    All are floats, also the signs: on a CPU, arithmetic is several times as fast as choosing by a mask.

    Args:
        excess: by how much, [..., n], at least 0.
        weights: |w|, by how much it falls for each unit that a coordinate moves, [n, d].
        signs: whether a coordinate has to rise (1) or to fall (−1) for it, or does not count (0), [..., n, d].
        room: how far the box lets a coordinate move, [..., n, d]; 0 where it does not count.
        gains: by how much it falls for that, [..., n, d] …
        reach: … and for all of them, [..., n].
    """

    excess: Tensor
    weights: Tensor
    signs: Tensor
    room: Tensor
    gains: Tensor
    reach: Tensor


def _way(points: Tensor, normals: Tensor, offsets: Tensor) -> _Way:
    excess = (normals * points).sum(-1) - offsets
    signs = torch.where(excess >= 0, -1.0, 1.0)[..., None] * normals.sign()
    room = signs.clamp(min=0).sub_(points).mul_(signs)  # 1 − z or z
    weights = normals.abs()
    gains = weights * room
    return _Way(excess.abs(), weights, signs, room, gains, gains.sum(-1))


def _level(limits: Tensor, slopes: Tensor, stopped: Tensor, goal: Tensor, beyond: Tensor) -> Tensor:
    """The least λ ≥ 0 at which Σ slopes · min(limits, λ) = goal, [..., n]; infinite where that is ``beyond`` reach.

    Newton's method from 0: the sum is concave in λ, so a step never goes too far, and it only depends on which limits
    λ has not reached. A row at which these stay the same has arrived, and repeats its λ to the last bit while the
    others go on; so its result does not depend on them. NaN leaves a row at 0.

    Each step divides (what is missing) · (slope) by four or more, as Dinkelbach's does; with images, three or four
    steps do. A CPU looks whether all rows have arrived. Others would have to wait for that, and take all `STEPS`.

    Args:
        limits: [..., n, d].
        slopes: at least 0, [n, d].
        stopped: slopes · limits.
        goal: at least 0, [..., n].
        beyond: [..., n].
    """
    level = torch.zeros_like(goal).masked_fill_(beyond, torch.inf)
    free, part = torch.empty_like(limits), torch.empty_like(limits)  # large: made once
    for _ in range(STEPS):
        torch.gt(limits, level[..., None], out=free)  # 1 or 0
        slope = torch.mul(slopes, free, out=part).sum(-1)
        done = torch.addcmul(stopped, stopped, free, value=-1, out=part).sum(-1)
        further = torch.fmax(level, (goal - done) / slope)
        if level.device.type == "cpu" and torch.equal(further, level):
            break
        level = further
    return level
