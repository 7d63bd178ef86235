"""Spread of the pre-activations, which gives β its scale; see `harness.curvature.smoothing`."""

from __future__ import annotations

from math import isfinite
from statistics import median
from typing import Any

from torch import Tensor

from harness.curvature.families import Family


class Spreads:
    """The untouched activations as a curve, which keeps the standard deviation of what it is called with.

    Args:
        family: the activations that are steered. A clamped one is two calls, each of the pre-activations shifted.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.found: list[float] = []

    def __call__(self, x: Tensor, *kind: Any) -> Tensor:
        """Compute the untouched activation of one call, over all images and units."""
        self.found.append(float(x.detach().double().std(correction=0)))
        return self.family.original_op(x, *kind)

    def median(self) -> float | None:
        """Return the median over the calls; None where no pre-activation varies."""
        varying = [spread for spread in self.found if isfinite(spread) and spread > 0]
        return median(varying) if varying else None
