"""ReLU spelt otherwise: ``maximum(x, 0)``, ``x * (x > 0)``, ``x.clamp(min=0)``, ``where`` and any other spelling.

A call is recognised by what it does rather than by its name: it leaves an input as it is where that is positive, and
multiplies it by one number where it is negative. A guard on images or norms, which are not negative, does neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from harness.curvature.families import FAMILIES

ALREADY_COUNTED = "threshold"
"""A spelling that is an operation of its own below Python."""


def watched(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
    """Call a torch function, and return its result and a name, ``relu as maximum``, if it was a ReLU or LeakyReLU."""
    if any(func in family.functions for family in FAMILIES.values()):  # spelt as it is meant
        return func(*args, **kwargs), ""
    name = func.__name__
    hidden = [leaf for leaf in tree_leaves((args, kwargs)) if _may_be_hidden(leaf)]
    in_place = name.endswith("_")
    before = [leaf.detach().clone() if in_place else leaf.detach() for leaf in hidden]
    result = func(*args, **kwargs)
    after = args[0] if in_place and args else result
    if not isinstance(after, Tensor) or not after.requires_grad or ALREADY_COUNTED in name:
        return result, ""
    with torch.no_grad():
        slopes = (_slope(x, after) for x in before if x.shape == after.shape and x.dtype == after.dtype)
        slope = next((slope for slope in slopes if slope is not None), None)
    kind = "relu" if slope == 0 else "leaky_relu"
    return result, "" if slope is None else f"{kind} as {name.strip('_')}"


def _may_be_hidden(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_floating_point() and leaf.ndim > 1


def _slope(x: Tensor, y: Tensor) -> float | None:
    """Return the slope, not 1, by which ``y`` follows ``x`` below 0 while it equals it above; None if it does not."""
    positive, negative = x > 0, x < 0
    if not positive.any() or not negative.any() or not torch.equal(y[positive], x[positive]):
        return None
    below, slopes = x[negative], y[negative] / x[negative]
    slope = slopes[below.abs().argmax()]
    same = torch.allclose(y[negative], slope * below, rtol=1e-4, atol=1e-6 * float(below.abs().max()))
    return float(slope) + 0.0 if same and abs(float(slope)) < 1 - 1e-4 else None
