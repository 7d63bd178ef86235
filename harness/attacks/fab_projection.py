"""FAB's projections onto a hyperplane within the box [0, 1]^d (arXiv 1907.02044, Section 2), without a host wait.

Each coordinate of a point moves in one direction, towards the hyperplane, until the box stops it. Under L∞ and L2, the
length of the move is one number λ for each point, at which a concave piecewise-linear function reaches a target. The
library sorts the function's kinks to find λ; a few Newton steps are faster. Under L1, coordinates move one after the
other. The results are those of ``pyautoattack.fab_projections`` up to rounding, also for points outside the box.

On a GPU with Triton, `harness.attacks.fab_projection_triton` computes L∞ and L2 instead, in one kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NEGLIGIBLE = 1e-8
"""Weight |w| up to which a coordinate is not moved under L2 and L1, as in the library."""
FIRST = 256
"""Coordinates of largest weight among which L1 usually arrives; only if it does not are all of them sorted."""
STEPS = 20
"""Most Newton steps; weights over twelve orders of magnitude take as many."""


def linf(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """Compute the shortest moves in L∞ that take points to their hyperplanes within the box.

    Where the box does not meet the hyperplane, or a number of the row is NaN, the move leads to the corner of the box
    nearest to the hyperplane.

    Args:
        points: points t in [0, 1]^d, [..., n, d]; points along the first dimension may share a hyperplane.
        normals: normals w of the hyperplanes <w, z> = b, [n, d].
        offsets: offsets b of the hyperplanes, [n].

    Returns:
        The moves to be added to the points, [..., n, d]; 0 in coordinates where the normal is 0.
    """
    approach = _approach(points, normals, offsets)
    beyond = ~(approach.excess < approach.reach)
    level = _level(approach.room, approach.weights, approach.gains, approach.excess, beyond)
    return torch.minimum(approach.room, level[..., None]).mul_(approach.signs)


def l2(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """Compute the shortest moves in L2 that take points to their hyperplanes within the box.

    Where the box does not meet the hyperplane, the move leads to the corner of the box nearest to it. A row with a NaN
    gives a row of NaN.

    Args:
        points: points t in [0, 1]^d, [..., n, d]; points along the first dimension may share a hyperplane.
        normals: normals w of the hyperplanes <w, z> = b, [n, d].
        offsets: offsets b of the hyperplanes, [n].

    Returns:
        The moves to be added to the points, [..., n, d]; 0 in coordinates where the normal is negligible.
    """
    approach = _approach(points, F.hardshrink(normals, NEGLIGIBLE), offsets)
    limits = approach.room / approach.weights.clamp(min=NEGLIGIBLE)
    beyond = approach.excess > approach.reach
    level = _level(limits, approach.weights.square(), approach.gains, approach.excess, beyond)
    level.masked_fill_((approach.excess - approach.reach).isnan(), torch.nan)
    return torch.minimum(limits, level[..., None]).mul_(approach.weights).mul_(approach.signs)


def l1(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """Compute the shortest moves in L1 that take points to their hyperplanes within the box.

    Coordinates go to the wall one after the other, those of largest weight first. Where the box does not meet the
    hyperplane, the move leads to the corner of the box nearest to it.

    Args:
        points: points t in [0, 1]^d, [..., n, d]; points along the first dimension may share a hyperplane.
        normals: normals w of the hyperplanes <w, z> = b, [n, d].
        offsets: offsets b of the hyperplanes, [n].

    Returns:
        The moves to be added to the points, [..., n, d]; 0 in coordinates where the normal is negligible.
    """
    approach = _approach(points, F.hardshrink(normals, NEGLIGIBLE), offsets)
    few = approach.room.device.type == "cpu" and approach.room.shape[-1] > FIRST
    if few and (approach.room >= 0).all():  # a CPU takes many times as long to sort all coordinates
        moves, arrived = _in_turn(approach, approach.weights.topk(FIRST).indices)
        if arrived.all():
            return moves
    every, reached = _in_turn(approach, approach.weights.argsort(dim=-1, descending=True, stable=True))
    return torch.where(reached[..., None], every, approach.room * approach.signs)


def _in_turn(approach: _Approach, order: Tensor) -> tuple[Tensor, Tensor]:
    """Move coordinates to the wall one after the other, in ``order`` [n, k], until the hyperplane is reached.

    A point outside the box may pass its hyperplane several times, since some coordinates move away from it. The
    library's bisection settles for one of these passes, and so does this one.

    Returns:
        The moves, [..., n, d]; mask of the points that reach their hyperplanes, [..., n].
    """
    weights, order = approach.weights.gather(-1, order), order.expand(*approach.room.shape[:-1], -1)
    room, gains = approach.room.gather(-1, order), approach.gains.gather(-1, order)
    left = torch.cat([approach.excess[..., None], approach.excess[..., None] - gains.cumsum(-1)], dim=-1)
    count = order.shape[-1]
    last, after = torch.zeros_like(order[..., :1]), torch.full_like(order[..., :1], count + 1)
    for _ in range(count.bit_length()):
        middle = (last + after) // 2
        missing = left.gather(-1, middle) > 0
        last, after = torch.where(missing, middle, last), torch.where(missing, after, middle)
    rank = torch.arange(count, device=order.device)
    share = (left[..., :-1] / weights.clamp_(min=NEGLIGIBLE)).clamp_(min=0)
    moves = torch.where(rank < last, room, torch.where(rank == last, torch.minimum(room, share), 0.0))
    return torch.zeros_like(approach.room).scatter_(-1, order, moves).mul_(approach.signs), left[..., -1] <= 0


class _Approach(NamedTuple):
    """Directions and limits of the moves, with every normal oriented so that <w, z> must decrease.

    All are floats, the signs too: on a CPU, arithmetic is several times as fast as a choice by a mask.

    Args:
        excess: amount by which <w, z> must decrease, [..., n], at least 0.
        weights: decrease of <w, z> per unit that a coordinate moves, |w|, [n, d].
        signs: direction of each coordinate: up (1), down (−1) or none (0), [..., n, d].
        room: distance to the wall in that direction, [..., n, d]; negative for a point beyond it, 0 without direction.
        gains: decrease of <w, z> for each coordinate that moves to the wall, [..., n, d].
        reach: decrease of <w, z> when all coordinates do, [..., n].
    """

    excess: Tensor
    weights: Tensor
    signs: Tensor
    room: Tensor
    gains: Tensor
    reach: Tensor


def _approach(points: Tensor, normals: Tensor, offsets: Tensor) -> _Approach:
    excess = (normals * points).sum(-1) - offsets
    signs = torch.where(excess >= 0, -1.0, 1.0)[..., None] * normals.sign()
    room = signs.clamp(min=0).sub_(points).mul_(signs)  # 1 − t or t
    weights = normals.abs()
    gains = weights * room
    return _Approach(excess.abs(), weights, signs, room, gains, gains.sum(-1))


def _level(limits: Tensor, slopes: Tensor, at_limit: Tensor, target: Tensor, beyond: Tensor) -> Tensor:
    """Solve Σ slopes · min(limits, λ) = target for the least λ ≥ 0, [..., n]; infinite where ``beyond`` is set.

    Newton's method from 0. The sum is concave in λ, so a step never overshoots, and a step depends only on the set of
    limits above λ. A row whose set stays the same has converged and repeats its λ to the last bit while the others go
    on, so its result does not depend on theirs. A row with NaN stays at 0.

    Each step divides (remaining decrease) · (slope) by four or more, as Dinkelbach's does; on images, three or four
    steps suffice. A CPU checks whether all rows have converged. Other devices would have to wait for the answer, and
    take all `STEPS`.

    Args:
        limits: [..., n, d].
        slopes: at least 0, [n, d].
        at_limit: slopes · limits, [..., n, d].
        target: at least 0, [..., n].
        beyond: mask of the rows whose target is out of reach, bool [..., n].
    """
    level = torch.zeros_like(target).masked_fill_(beyond, torch.inf)
    free, buffer = torch.empty_like(limits), torch.empty_like(limits)  # large: allocated once
    for _ in range(STEPS):
        torch.gt(limits, level[..., None], out=free)  # 1 or 0
        slope = torch.mul(slopes, free, out=buffer).sum(-1)
        constant = torch.addcmul(at_limit, at_limit, free, value=-1, out=buffer).sum(-1)
        next_level = torch.fmax(level, (target - constant) / slope)
        if level.device.type == "cpu" and torch.equal(next_level, level):
            break
        level = next_level
    return level
