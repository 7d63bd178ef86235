"""The two families of activations that can be steered: the paper's, and an extension to smooth ones.

``relu`` is Curvature Tuning as published: the piecewise-affine activations, untouched at β = 1. ``smooth`` goes beyond
the paper: SiLU and GELU, which are a φ with c = 1 already (SiLU exactly, at β = 1/2), are made sharper or smoother from
their own β on. What is here tells the rerouting and its proof apart from what they reroute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.api.records import FamilyName
from harness.curvature import smooth
from harness.curvature.phi import curve, dialled, dials
from harness.curvature.piecewise_affine import FUNCTIONS, OTHERS, PIECEWISE_AFFINE, Bent, Curve


@dataclass(frozen=True)
class Family:
    """Activations that one steering bends.

    Args:
        functions: every way in which Python code can call one of them: its name and its bent version.
        operations: what computes them below Python, by name.
        others: what computes any other activation below Python.
        curve: from β < 1 and c to what the bent versions are made of.
        dials: β and c in the numbers that ``dialled`` takes; None where the curve is not a member of it.
        dialled: the same curve in plain operations, its dials a tensor, for a compiler to fuse.
        kink: the untouched activations' own curve.
        stand_in: the same by operations that are not among ``operations``, for the proof.
        native: the β at which each activation is untouched.
        spares_outputs: whether one that acts on the network's outputs is left alone, being no hidden activation.
    """

    functions: Mapping[Any, tuple[str, Bent]]
    operations: Mapping[str, str]
    others: Mapping[str, str]
    curve: Callable[[float, float], Curve]
    dials: Callable[[float, float], tuple[float, ...] | None]
    dialled: Callable[..., Tensor]
    kink: Curve
    stand_in: Curve
    native: Mapping[str, float]
    spares_outputs: bool

    def lifted(self, x: Tensor, *which: Any) -> Tensor:
        """A curve that changes every value, so that writing in place shows."""
        return self.stand_in(x, *which) + 1


def _clamped(x: Tensor) -> Tensor:
    """ReLU by an operation that is not one of those watched for."""
    return x.clamp_min(0)


FAMILIES: Mapping[FamilyName, Family] = {
    "relu": Family(
        functions=FUNCTIONS,
        operations=PIECEWISE_AFFINE,
        others=OTHERS,
        curve=lambda beta, c: partial(curve, beta=beta, c=c),
        dials=dials,
        dialled=dialled,
        kink=torch.relu,
        stand_in=_clamped,
        native={name: 1.0 for name, _ in FUNCTIONS.values()},
        spares_outputs=False,
    ),
    "smooth": Family(
        functions=smooth.FUNCTIONS,
        operations={name: OTHERS[name] for name in smooth.OPERATIONS},
        others=PIECEWISE_AFFINE | {name: kind for name, kind in OTHERS.items() if name not in smooth.OPERATIONS},
        curve=lambda beta, c: partial(smooth.dilated, beta=beta),
        dials=smooth.dials,
        dialled=smooth.dialled,
        kink=smooth.native,
        stand_in=smooth.stand_in,
        native=smooth.NATIVE,
        spares_outputs=True,
    ),
}
