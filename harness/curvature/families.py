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
from harness.curvature.phi import curve, curve_parameters, parametric
from harness.curvature.piecewise_affine import FUNCTIONS, OTHERS, PIECEWISE_AFFINE, Curve, SteeredOp


@dataclass(frozen=True)
class Family:
    """Activations that one steering bends.

    Args:
        functions: every way in which Python code can call one of them: its name and its bent version.
        operations: what computes them below Python, by name.
        others: what computes any other activation below Python.
        curve: from β < 1 and c to what the bent versions are made of.
        curve_parameters: β and c in the numbers that ``parametric`` takes; None where the curve is not a member of it.
        parametric: the same curve in plain operations, its dials a tensor, for a compiler to fuse.
        original_op: the untouched activations' own curve.
        shadow_op: the same by operations that are not among ``operations``, for the proof.
        native: the β at which each activation is untouched.
        skips_outputs: whether one that acts on the network's outputs is left alone, being no hidden activation.
    """

    functions: Mapping[Any, tuple[str, SteeredOp]]
    operations: Mapping[str, str]
    others: Mapping[str, str]
    curve: Callable[[float, float], Curve]
    curve_parameters: Callable[[float, float], tuple[float, ...] | None]
    parametric: Callable[..., Tensor]
    original_op: Curve
    shadow_op: Curve
    native: Mapping[str, float]
    skips_outputs: bool

    def shifted_shadow_op(self, x: Tensor, *which: Any) -> Tensor:
        """A curve that changes every value, so that writing in place shows."""
        return self.shadow_op(x, *which) + 1


def _clamped(x: Tensor) -> Tensor:
    """ReLU by an operation that is not one of those watched for."""
    return x.clamp_min(0)


FAMILIES: Mapping[FamilyName, Family] = {
    "relu": Family(
        functions=FUNCTIONS,
        operations=PIECEWISE_AFFINE,
        others=OTHERS,
        curve=lambda beta, c: partial(curve, beta=beta, c=c),
        curve_parameters=curve_parameters,
        parametric=parametric,
        original_op=torch.relu,
        shadow_op=_clamped,
        native={name: 1.0 for name, _ in FUNCTIONS.values()},
        skips_outputs=False,
    ),
    "smooth": Family(
        functions=smooth.FUNCTIONS,
        operations={name: OTHERS[name] for name in smooth.OPERATIONS},
        others=PIECEWISE_AFFINE | {name: kind for name, kind in OTHERS.items() if name not in smooth.OPERATIONS},
        curve=lambda beta, c: partial(smooth.dilated, beta=beta),
        curve_parameters=smooth.curve_parameters,
        parametric=smooth.parametric,
        original_op=smooth.native,
        shadow_op=smooth.shadow_op,
        native=smooth.NATIVE,
        skips_outputs=True,
    ),
}
