"""The CT activation φ(x; β, c) of Hu, Gamba & Balestriero (arXiv 2502.07783), Eq. 7.

    φ(x) = c·x·σ(ηx) + (1 − c)·softplus(γx)/γ        with γ = 1/(1 − β), η = βγ

β = 1 is the original ReLU and β → 0 flattens it: at β = 0, c = 1 it is x/2.
SiLU is (β, c) = (1/2, 1), softplus is (0, 0).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.curvature import blocks
from harness.curvature.blocks import Columns
from harness.errors import ModelError, SpecError

HALF = (torch.float16, torch.bfloat16)
"""Half-precision dtypes, in which φ is computed in float32 and cast back."""
_LOG_MAX = {torch.float64: 40.0}
"""γx beyond which softplus(γx)/γ equals x to the last bit, by dtype; 20 for float32."""
_LOG2_E = 1.0 / math.log(2.0)


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
    """Compute φ at β < 1, without checking the range: equal to `parametric` with the same β for all images."""
    if x.dtype in HALF:
        return curve(x.float(), beta, c).to(x.dtype)  # φ'' grows like 1/(1 − β): half overflows where float32 does not
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        gamma = 1.0 / (1.0 - beta)
        return formula(x, gamma, beta * gamma, c)
    return _eager(x, _columns(beta, c, x.dtype, x.device), c)


def formula(x: Tensor, gamma: float, eta: float, c: float) -> Tensor:
    """Compute Eq. 7 as printed, in plain operations that compilers and function transforms can differentiate."""
    return c * x * torch.sigmoid(eta * x) + (1.0 - c) * F.softplus(gamma * x, 1, _threshold(x)) / gamma


def _threshold(x: Tensor) -> float:
    return _LOG_MAX.get(x.dtype, 20.0)


def curve_parameters(beta: float, c: float) -> tuple[float, ...] | None:
    """Return the numbers that `parametric` takes; None at β = 1, where γ is infinite.

    These are γ, η, c, 1 − c, −γ·log₂e, (1 − c)/γ and the latter times the leading factor of the cubic in
    `harness.curvature.blocks`: rounded to float32 once, here, they are the same for one image and for many.
    """
    if beta == 1.0:
        return None
    gamma = 1.0 / (1.0 - beta)
    width = (1.0 - c) / gamma
    return gamma, beta * gamma, c, 1.0 - c, -gamma * _LOG2_E, width, width * 2.0 * blocks.LEADING


def parametric(x: Tensor, curve_parameters: Tensor) -> Tensor:
    """Compute φ with its parameters given as a tensor: one steering for all images or one for each.

    Args:
        x: tensor of any shape and floating dtype.
        curve_parameters: values of the function of that name, as a tensor [7]; or [n, 7], a row an image, where x has
            n images in dimension 0.

    Returns:
        φ(x), with the shape and dtype of ``x``. An image's values and gradients are equal whatever the other rows.

    Raises:
        ModelError: x has another number of images than the parameters have rows.
    """
    check_rows(x, curve_parameters)
    wide = x.float() if x.dtype in HALF else x
    compiling = torch.compiler.is_compiling()
    by_image = curve_parameters.ndim == 2
    shape = [len(x), *[1] * (1 if wide.is_cpu and not compiling else x.ndim - 1)] if by_image else []
    columns = Columns(*(column.reshape(shape) for column in curve_parameters.to(wide.dtype).unbind(-1)))
    return (_CompiledPhi.apply(wide, *columns) if compiling else _eager(wide, columns)).to(x.dtype)


def check_rows(x: Tensor, curve_parameters: Tensor) -> None:
    """Check that there is one row of parameters an image, or one for all of them.

    Raises:
        ModelError: x has another number of images than the parameters have rows.
    """
    rows = curve_parameters.shape[0] if curve_parameters.ndim == 2 else None
    if rows is not None and (x.ndim == 0 or x.shape[0] != rows):
        raise ModelError(
            f"mixed β: expected an activation of {rows} images in dimension 0, one for each row of parameters; found "
            f"shape {tuple(x.shape)}: the network folds its batch into another dimension, so give a batch one β"
        )


@lru_cache(maxsize=4096)
def _columns(beta: float, c: float, dtype: torch.dtype, device: torch.device) -> Columns:
    numbers = curve_parameters(beta, c)
    assert numbers is not None
    with torch.inference_mode(False):
        return Columns(*torch.tensor(numbers, dtype=dtype, device=device).unbind())


def _eager(x: Tensor, columns: Columns, c: float | None = None) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        return _EagerPhi.apply(x, columns, c)  # type: ignore[no-any-return]
    return _value(x, columns, c)


def _value(x: Tensor, columns: Columns, c: float | None) -> Tensor:
    return blocks.value(x, columns, c) if x.is_cpu else plain(x, columns)


class _EagerPhi(torch.autograd.Function):
    """φ operation by operation, keeping only x for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Columns, c: float | None) -> Tensor:  # a setup_context triples the time
        ctx.save_for_backward(x)
        ctx.columns, ctx.c = columns, c
        return _value(x, columns, c)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        columns: Columns = ctx.columns
        if x.is_cpu and not torch.is_grad_enabled():
            return blocks.gradient(grad, x, columns, ctx.c), None, None
        gamma, eta, weight, *_ = (column.reshape([-1, *[1] * (x.ndim - 1)]) if column.ndim else column
                                  for column in columns)  # fmt: skip
        return grad * slope(x, gamma, eta, weight), None, None


class _CompiledPhi(torch.autograd.Function):
    """φ in operations that a compiler fuses into one kernel for each pass, keeping only x for the backward pass.

    The gradient is written out because that of this softplus would be 0 at x = 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *columns: Tensor) -> Tensor:
        gamma, eta, c = columns[:3]
        ctx.save_for_backward(x, gamma, eta, c)
        return plain(x, Columns(*columns))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * slope(*ctx.saved_tensors), *[None] * len(Columns._fields)


def plain(x: Tensor, columns: Columns) -> Tensor:
    """Compute φ as `harness.curvature.blocks` does, in plain operations: for a GPU and for compilers."""
    softplus = columns.rest * x.clamp_min(0.0) + columns.width * torch.log1p(torch.exp2(columns.decay * x.abs()))
    return columns.c * x * torch.sigmoid(columns.eta * x) + softplus


def slope(x: Tensor, gamma: float | Tensor, eta: float | Tensor, c: float | Tensor) -> Tensor:
    """Compute φ'(x) = c·σ(ηx)·(1 + ηx·(1 − σ(ηx))) + (1 − c)·σ(γx), for β < 1."""
    u = eta * x
    swish = torch.sigmoid(u)
    return c * swish * (1.0 + u * (1.0 - swish)) + (1.0 - c) * torch.sigmoid(gamma * x)
