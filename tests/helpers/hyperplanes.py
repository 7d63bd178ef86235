"""Points and hyperplanes to project them onto, drawn and degenerate, and how close projections come."""

from __future__ import annotations

import torch
from torch import Tensor

CLOSE = {torch.float32: 2e-4, torch.float64: 1e-9}
"""Weights are 0.1 … 1 in size or 0, so rounding grows at most some hundredfold from the sums to the moves."""


def rows(
    n: int, d: int, seed: int, ties: bool = False, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, normals and offsets: from far out of reach on one side over every share of the reach to the other."""
    drawn = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        values = torch.rand(*shape, generator=drawn, dtype=torch.float64)
        return (4 * values).round() / 4 if ties else values

    points = (1.5 * uniform(n, d) - 0.25).clamp(0, 1)  # a third of them at the walls
    signs = torch.randint(-1, 2, (n, d), generator=drawn)
    normals = (0.1 + 0.9 * uniform(n, d)) * signs
    height, share = (normals * points).sum(1), 2.4 * uniform(n) - 1.2
    lowest, highest = normals.clamp(max=0).sum(1), normals.clamp(min=0).sum(1)
    offsets = height + torch.where(share > 0, share * (highest - height), share * (height - lowest))
    return points.to(dtype), normals.to(dtype), offsets.to(dtype)


def assert_reached(ends: Tensor, normals: Tensor, offsets: Tensor) -> None:
    """Check that ends lie in the box, and on their hyperplanes or in the corner nearest to it, up to rounding."""
    tiny, dtype = 8 * torch.finfo(ends.dtype).eps, torch.float64
    ends, w, b = ends.to(dtype), normals.to(dtype), offsets.to(dtype)
    assert ends.min() >= -tiny
    assert ends.max() <= 1 + tiny
    reached = torch.maximum(torch.minimum(b, w.clamp(min=0).sum(1)), w.clamp(max=0).sum(1))
    torch.testing.assert_close((w * ends).sum(1), reached, atol=4 * normals.shape[1] * tiny, rtol=0)


NAN, INF = float("nan"), float("inf")
T, W = [0.25, 0.5, 0.0, 1.0], [0.5, -0.25, 1.0, -1.0]
DEGENERATE = {
    "on the hyperplane": (T, W, -1.0),
    "no normal": (T, [0.0] * 4, 0.5),
    "no normal, on it": (T, [0.0] * 4, 0.0),
    "one coordinate counts": (T, [0.0, 0.25, 0.0, 0.0], 0.2),
    "above reach": (T, W, 1.75),
    "below reach": (T, W, -1.75),
    "just in reach": (T, W, 1.5),
    "no room": ([0.0, 1.0, 0.0, 1.0], W, -2.0),
    "all rooms equal": ([0.5] * 4, W, 0.25),
    "negligible normal": (T, [1e-9, -1e-9, 2e-9, 0.0], 0.1),
    "partly negligible normal": (T, [1e-9, -1e-9, 0.5, 1.0], 1.2),
    "NaN in the offset": (T, W, NAN),
    "NaN in the normal": (T, [0.5, NAN, 1.0, -1.0], 0.5),
    "NaN in the point": ([0.25, NAN, 0.0, 1.0], W, 0.5),
    "NaN where the normal is 0": ([0.25, NAN, 0.0, 1.0], [0.5, 0.0, 1.0, -1.0], 0.5),
    "infinite offset": (T, W, INF),
    "infinite offset below": (T, W, -INF),
    "infinite normal": (T, [0.5, INF, 1.0, -1.0], 0.5),
    "infinite normals": (T, [INF, -0.25, -INF, -1.0], 0.5),
    "infinite point": ([0.25, INF, 0.0, 1.0], W, 0.5),
    "out of the box": ([-0.1, 1.2, 0.3, 0.5], W, 0.5),
}
