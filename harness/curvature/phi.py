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
"""Computed in float32 and cast back."""
_LOG_MAX = {torch.float64: 40.0}
"""γx beyond which softplus(γx)/γ is x to the last bit; 20 for float32."""


def phi(x: Tensor, beta: float, c: float = 0.5) -> Tensor:
    """The CT activation in place of ReLU, element by element (Eq. 7).

    Args:
        x: any shape, any floating dtype; half types are computed in float32 and cast back, gradients too.
        beta: in [0, 1]; 1 is ReLU, exactly.
        c: in [0, 1], the share of the swish part; the paper takes 0.5.

    Returns:
        φ(x), of the shape and dtype of ``x``. Finite for abs(x) ≤ 1e4 and every β.

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
    """Refuse a β or c outside [0, 1]."""
    for name, value in (("beta", beta), ("c", c)):
        if not (isinstance(value, int | float) and math.isfinite(value) and 0.0 <= value <= 1.0):
            raise SpecError(f"{name}: expected a number in [0, 1], found {value!r}")


def curve(x: Tensor, beta: float, c: float) -> Tensor:
    """φ for β < 1, unchecked."""
    if x.dtype in HALF:
        return curve(x.float(), beta, c).to(x.dtype)  # φ'' grows like 1/(1 − β): half overflows where float32 does not
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        gamma = 1.0 / (1.0 - beta)
        return formula(x, gamma, beta * gamma, c)
    if x.requires_grad and torch.is_grad_enabled():
        return _Curve.apply(x, beta, c)  # type: ignore[no-any-return]
    return _value(x, beta, c)


def formula(x: Tensor, gamma: float | Tensor, eta: float | Tensor, c: float | Tensor) -> Tensor:
    """Eq. 7 as it is printed, for a transform to take apart."""
    return c * x * torch.sigmoid(eta * x) + (1.0 - c) * F.softplus(gamma * x, 1, _threshold(x)) / gamma


def curve_parameters(beta: float, c: float) -> tuple[float, ...] | None:
    """γ, η and c, for `parametric`; None at β = 1, where there are none."""
    return None if beta == 1.0 else (1.0 / (1.0 - beta), beta / (1.0 - beta), c)


def parametric(x: Tensor, curve_parameters: Tensor) -> Tensor:
    """φ whose γ, η and c are a tensor [3], in plain operations: compiled once, it serves every β < 1."""
    wide = x.float() if x.dtype in HALF else x
    return _ParametricPhi.apply(wide, *curve_parameters).to(x.dtype)  # type: ignore[no-any-return]


class _ParametricPhi(torch.autograd.Function):
    """φ in operations that a compiler fuses to one quick kernel each way, with only x kept between them.

    Not eagerly: softplus by hand has a gradient of 0 at 0, so the gradient is given.
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


class _Curve(torch.autograd.Function):
    """φ from the framework's own kernels, keeping nothing but x for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: float, c: float) -> Tensor:  # with a setup_context it takes thrice as long
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
    """φ'(x) = c·σ(ηx)·(1 + ηx·(1 − σ(ηx))) + (1 − c)·σ(γx), for β < 1."""
    u = eta * x
    swish = torch.sigmoid(u)
    return c * swish * (1.0 + u * (1.0 - swish)) + (1.0 - c) * torch.sigmoid(gamma * x)


def _mix(swish: Callable[[], Tensor], softplus: Callable[[], Tensor], c: float) -> Tensor:
    """c·swish + (1 − c)·softplus, computing only what counts."""
    if c == 0.0:
        return softplus()
    return swish() if c == 1.0 else softplus().lerp_(swish(), c)


def _threshold(x: Tensor) -> float:
    return _LOG_MAX.get(x.dtype, 20.0)
