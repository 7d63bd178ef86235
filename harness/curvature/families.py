"""The two families of activations that can be steered: the paper's, and an extension to smooth activations.

``relu`` is Curvature Tuning as published: the piecewise-affine activations, untouched at β = 1. ``smooth`` goes beyond
the paper: SiLU and GELU, which already are φ at c = 1 (SiLU exactly, at β = 1/2; GELU nearly), are made sharper or
smoother starting from their own β. A `Family` holds all that the rerouting and its proof need to know of one.
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
    """The activations that are steered together, and their curves.

    Args:
        functions: every function by which Python code can call one, with the activation's name and its steered version.
        operations: ATen operations that compute the family's activations, with the activation's name.
        others: ATen operations that compute any other activation, with the activation's name.
        curve: maps β < 1 and c to the curve from which the steered versions are built.
        curve_parameters: maps β and c to the numbers that ``parametric`` takes; None where it cannot express the curve.
        parametric: the same curve with its parameters a tensor, one steering for all images or a row for each.
        original_op: the curve of the untouched activations.
        shadow_op: the same curve computed by operations that are not among ``operations``, for the proof.
        native: β at which each activation is untouched, by its name.
        skips_outputs: whether an activation applied to the network's outputs is skipped, as it is not a hidden one.
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
        """Compute the shadow op plus 1: a curve that changes every value, so that a write in place shows."""
        return self.shadow_op(x, *which) + 1


def _clamped(x: Tensor) -> Tensor:
    """Compute ReLU by an operation that is not among those watched for."""
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
        original_op=smooth.original_op,
        shadow_op=smooth.shadow_op,
        native=smooth.NATIVE,
        skips_outputs=True,
    ),
}
