"""The CT activation φ(x; β, c) of Hu, Gamba & Balestriero (arXiv 2502.07783), Eq. 7.

    φ(x) = c·x·σ(ηx) + (1 − c)·softplus(γx)/γ        with γ = 1/(1 − β), η = βγ

β = 1 is the original ReLU and β → 0 flattens it: at β = 0, c = 1 it is x/2.
SiLU is (β, c) = (1/2, 1), softplus is (0, 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.errors import SpecError

HALF = (torch.float16, torch.bfloat16)
"""Half-precision dtypes, in which φ is computed in float32 and cast back."""
_LOG_MAX = {torch.float64: 40.0}
"""γx beyond which softplus(γx)/γ equals x to the last bit, by dtype; 20 for float32."""


def phi(x: Tensor, beta: float, c: float = 0.5) -> Tensor:
    """Apply the CT activation, which takes the place of ReLU, elementwise (Eq. 7).

    Args:
        x: tensor of any shape and floating dtype; half types are computed in float32 and cast back, gradients too.
        beta: steering parameter in [0, 1]; 1 is exactly ReLU.
        c: weight of the swish term in [0, 1]; the paper takes 0.5.

    Returns:
        φ(x), with the shape and dtype of ``x``; finite for abs(x) ≤ 1e4 at every β.

    Raises:
        SpecError: ``beta`` or ``c`` is outside [0, 1].

    Example:
        >>> phi(torch.tensor([-1.0, 0.0, 1.0]), beta=0.0, c=1.0)
        tensor([-0.5000,  0.0000,  0.5000])
    """
    check_range(beta, c)
    if beta == 1.0:
        return torch.relu(x)
    return curve(x, beta, c)


def check_range(beta: float, c: float) -> None:
    """Check that β and c lie in [0, 1].

    Raises:
        SpecError: one of them does not.
    """
    for name, value in (("beta", beta), ("c", c)):
        if not (isinstance(value, int | float) and math.isfinite(value) and 0.0 <= value <= 1.0):
            raise SpecError(f"{name}: expected a number in [0, 1], found {value!r}")


def curve(x: Tensor, beta: float, c: float) -> Tensor:
    """Compute φ at β < 1, without checking the range."""
    if x.dtype in HALF:
        return curve(x.float(), beta, c).to(x.dtype)  # φ'' grows like 1/(1 − β): half overflows where float32 does not
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        gamma = 1.0 / (1.0 - beta)
        return formula(x, gamma, beta * gamma, c)
    if x.requires_grad and torch.is_grad_enabled():
        return _EagerPhi.apply(x, beta, c)  # type: ignore[no-any-return]
    return _value(x, beta, c)


def formula(x: Tensor, gamma: float | Tensor, eta: float | Tensor, c: float | Tensor) -> Tensor:
    """Compute Eq. 7 as printed, in plain operations that compilers and function transforms can differentiate."""
    return c * x * torch.sigmoid(eta * x) + (1.0 - c) * F.softplus(gamma * x, 1, _threshold(x)) / gamma


def curve_parameters(beta: float, c: float) -> tuple[float, ...] | None:
    """Return (γ, η, c) for `parametric`; None at β = 1, where γ is infinite."""
    return None if beta == 1.0 else (1.0 / (1.0 - beta), beta / (1.0 - beta), c)


def parametric(x: Tensor, curve_parameters: Tensor) -> Tensor:
    """Compute φ with (γ, η, c) given as a tensor, so that one compilation serves every β < 1.

    Args:
        x: tensor of any shape and floating dtype.
        curve_parameters: the values of the function of that name, as a tensor [3].
    """
    wide = x.float() if x.dtype in HALF else x
    return _ParametricPhi.apply(wide, *curve_parameters).to(x.dtype)  # type: ignore[no-any-return]


class _ParametricPhi(torch.autograd.Function):
    """φ in operations that a compiler fuses into one kernel for each pass, keeping only x for the backward pass.

    The gradient is written out because that of this softplus would be 0 at x = 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, eta: Tensor, c: Tensor) -> Tensor:
        ctx.save_for_backward(x, gamma, eta, c)
        softplus = x.clamp_min(0.0) + torch.log1p(torch.exp(-(gamma * x).abs())) / gamma
        return c * x * torch.sigmoid(eta * x) + (1.0 - c) * softplus

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad * slope(*ctx.saved_tensors), None, None, None


def _value(x: Tensor, beta: float, c: float) -> Tensor:
    gamma = 1.0 / (1.0 - beta)
    return _mix(
        lambda: (beta * gamma * x).sigmoid_().mul_(x),
        lambda: F.softplus(x, gamma, _threshold(x)),
        c,
    )


class _EagerPhi(torch.autograd.Function):
    """φ by torch's own kernels, keeping only x for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: float, c: float) -> Tensor:  # a setup_context makes it three times slower
        ctx.save_for_backward(x)
        ctx.beta, ctx.c = beta, c
        return _value(x, beta, c)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        beta, c = ctx.beta, ctx.c
        gamma = 1.0 / (1.0 - beta)
        if torch.is_grad_enabled():  # a second derivative is wanted, which the fused kernels do not have
            return grad * slope(x, gamma, beta * gamma, c), None, None
        slopes = _mix(
            lambda: torch.ops.aten.silu_backward(grad, beta * gamma * x),
            lambda: torch.ops.aten.softplus_backward(grad, x, gamma, _threshold(x)),
            c,
        )
        return slopes, None, None


def slope(x: Tensor, gamma: float | Tensor, eta: float | Tensor, c: float | Tensor) -> Tensor:
    """Compute φ'(x) = c·σ(ηx)·(1 + ηx·(1 − σ(ηx))) + (1 − c)·σ(γx), for β < 1."""
    u = eta * x
    swish = torch.sigmoid(u)
    return c * swish * (1.0 + u * (1.0 - swish)) + (1.0 - c) * torch.sigmoid(gamma * x)


def _mix(swish: Callable[[], Tensor], softplus: Callable[[], Tensor], c: float) -> Tensor:
    """Return c·swish + (1 − c)·softplus, skipping a term of weight 0."""
    if c == 0.0:
        return softplus()
    return swish() if c == 1.0 else softplus().lerp_(swish(), c)


def _threshold(x: Tensor) -> float:
    return _LOG_MAX.get(x.dtype, 20.0)
