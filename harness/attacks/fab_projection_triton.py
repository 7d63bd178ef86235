"""FAB's projections in L∞ and L2 as one kernel, for GPUs; `harness.attacks.fab_projection` is the reference.

A program projects one point. It reads its row again at every Newton step, chunk by chunk from the cache, and stops when
this row has converged: no other row waits for it, nor does the host, and no row depends on another one. Sums are taken
in another order than the reference's, so results are the same up to rounding.

L1 is left to the reference: its coordinates move one after the other, which takes a sort.

Importing this file imports Triton, which comes with torch where there are GPUs.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.attacks.fab_projection import NEGLIGIBLE, STEPS
from harness.util.device_errors import raise_of_device

CHUNK = 4096
"""Most coordinates that a program holds at once, a power of two."""
COORDINATES_OF_A_WARP = 512


@cache
def compiles(device: torch.device) -> bool:
    """Return whether Triton can compile for a GPU, for which it needs a C compiler; warn where it cannot."""
    one = torch.ones(1, 1, device=device)
    try:
        linf(one, one, one[0])
    except Exception as error:  # whatever a compiler raises
        raise_of_device(error)
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        warnings.warn(f"FAB takes longer: Triton does not compile here ({reason}); install a C compiler", stacklevel=2)
        return False
    return True


def linf(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """Compute the shortest moves in L∞ that take points to their hyperplanes; see `fab_projection.linf`."""
    return _launch(points, normals, offsets, euclidean=False)


def l2(points: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """Compute the shortest moves in L2 that take points to their hyperplanes; see `fab_projection.l2`."""
    return _launch(points, normals, offsets, euclidean=True)


def _launch(points: Tensor, normals: Tensor, offsets: Tensor, euclidean: bool) -> Tensor:
    moves = torch.empty(points.shape, dtype=points.dtype, device=points.device)
    if not moves.numel():
        return moves
    hyperplanes, size = normals.shape
    block = min(triton.next_power_of_2(size), CHUNK)
    with torch.cuda.device_of(points):  # type: ignore[no-untyped-call]
        _project[(moves.numel() // size,)](
            points.contiguous(), normals.contiguous(), offsets.contiguous(), moves, hyperplanes, size,
            EUCLIDEAN=euclidean, NEGLIGIBLE=NEGLIGIBLE, STEPS=STEPS, BLOCK=block,
            num_warps=max(block // COORDINATES_OF_A_WARP, 1),
        )  # fmt: skip
    return moves


# Triton reads annotations as its own, and knows no other than its own.


@triton.jit  # type: ignore[untyped-decorator]
def _project(  # type: ignore[no-untyped-def]
    points,
    normals,
    offsets,
    moves,
    hyperplanes,
    size,
    EUCLIDEAN: tl.constexpr,
    NEGLIGIBLE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the move of one of the points [m, d]; point i has the hyperplane i modulo ``hyperplanes``."""
    row = tl.program_id(0).to(tl.int64)
    of = row % hyperplanes
    point, normal, move = points + row * size, normals + of * size, moves + row * size
    excess, side, reach = _approach(point, normal, tl.load(offsets + of), size, EUCLIDEAN, NEGLIGIBLE, BLOCK)
    level = _level(point, normal, excess, side, reach, size, EUCLIDEAN, NEGLIGIBLE, STEPS, BLOCK)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        t, w = _read(point, normal, at, size, EUCLIDEAN, NEGLIGIBLE)
        length = tl.minimum(_limit(t, w, side, EUCLIDEAN, NEGLIGIBLE), level, propagate_nan=tl.PropagateNan.ALL)
        if EUCLIDEAN:
            length *= tl.abs(w)
        tl.store(move + at, length * side * _sign(w), mask=at < size)


@triton.jit  # type: ignore[untyped-decorator]
def _approach(  # type: ignore[no-untyped-def]
    point, normal, offset, size, EUCLIDEAN: tl.constexpr, NEGLIGIBLE: tl.constexpr, BLOCK: tl.constexpr
):
    """Return what <w, z> must decrease by once w is oriented so, whether it then is w (−1) or −w (1), and the reach."""
    terms = tl.zeros([BLOCK], point.dtype.element_ty)
    for start in range(0, size, BLOCK):
        t, w = _read(point, normal, start + tl.arange(0, BLOCK), size, EUCLIDEAN, NEGLIGIBLE)
        terms += w * t
    excess = tl.sum(terms) - offset
    side = tl.where(excess >= 0, -1.0, 1.0).to(terms.dtype)
    terms = tl.zeros([BLOCK], point.dtype.element_ty)
    for start in range(0, size, BLOCK):
        t, w = _read(point, normal, start + tl.arange(0, BLOCK), size, EUCLIDEAN, NEGLIGIBLE)
        terms += tl.abs(w) * _room(t, w, side)
    return tl.abs(excess), side, tl.sum(terms)


@triton.jit  # type: ignore[untyped-decorator]
def _level(  # type: ignore[no-untyped-def]
    point,
    normal,
    excess,
    side,
    reach,
    size,
    EUCLIDEAN: tl.constexpr,
    NEGLIGIBLE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the level to which coordinates move, by Newton's method from 0; infinite where it is out of reach."""
    beyond = excess > reach if EUCLIDEAN else (excess < reach) == 0
    level = tl.where(beyond, float("inf"), 0.0).to(excess.dtype)
    moving, step = True, 0
    while moving & (step < STEPS):
        slopes = tl.zeros([BLOCK], point.dtype.element_ty)
        constants = tl.zeros([BLOCK], point.dtype.element_ty)
        for start in range(0, size, BLOCK):
            t, w = _read(point, normal, start + tl.arange(0, BLOCK), size, EUCLIDEAN, NEGLIGIBLE)
            free = _limit(t, w, side, EUCLIDEAN, NEGLIGIBLE) > level
            slopes += tl.where(free, w * w if EUCLIDEAN else tl.abs(w), 0.0)
            constants += tl.where(free, 0.0, tl.abs(w) * _room(t, w, side))
        higher = tl.maximum(level, (excess - tl.sum(constants)) / tl.sum(slopes))  # of NaN and a number, the number
        moving, level, step = higher != level, higher, step + 1
    if EUCLIDEAN:
        left = excess - reach
        level = tl.where(left == left, level, float("nan"))  # noqa: PLR0124 - NaN alone is not itself
    return level


@triton.jit  # type: ignore[untyped-decorator]
def _read(point, normal, at, size, EUCLIDEAN: tl.constexpr, NEGLIGIBLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return coordinates of the point and the normal; behind the end of the row both are 0, and count for nothing."""
    t = tl.load(point + at, mask=at < size, other=0.0)
    w = tl.load(normal + at, mask=at < size, other=0.0)
    if EUCLIDEAN:
        w = tl.where(tl.abs(w) <= NEGLIGIBLE, 0.0, w)
    return t, w


@triton.jit
def _sign(w):  # type: ignore[no-untyped-def]
    """Return 1, −1, or for 0 and NaN 0."""
    return (w > 0).to(w.dtype) - (w < 0).to(w.dtype)


@triton.jit
def _room(t, w, side):  # type: ignore[no-untyped-def]
    """Return the distance to the wall in the direction side · sign(w), 0 without a direction."""
    sign = side * _sign(w)
    return (tl.maximum(sign, 0.0) - t) * sign


@triton.jit  # type: ignore[untyped-decorator]
def _limit(t, w, side, EUCLIDEAN: tl.constexpr, NEGLIGIBLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the level at which a coordinate reaches the wall."""
    room = _room(t, w, side)
    if EUCLIDEAN:
        room /= tl.maximum(tl.abs(w), NEGLIGIBLE, propagate_nan=tl.PropagateNan.ALL)
    return room
