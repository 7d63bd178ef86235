"""SiLU and GELU made sharper or smoother: φ along c = 1, from their own β on. An extension, not in the paper.

With c = 1, φ(x; β) = x·σ(ηx) with η = β/(1 − β) (Eq. 7 of arXiv 2502.07783), and x·σ(ηx) = SiLU(ηx)/η: all of them are
one curve, dilated. SiLU is the one with η = 1, β = 1/2. GELU is nearest to η = 16/9, β = 0.64 (within 0.015
everywhere); it is dilated likewise, so that it comes back bit by bit at its own β. Both become ReLU as β → 1 and x/2
at β = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.curvature.phi import HALF
from harness.curvature.piecewise_affine import Curve, SteeredOp
from harness.curvature.shared_copy import copy_sharing_weights

SmoothActivation = Literal["silu", "gelu", "gelu_tanh"]

NATIVE: Mapping[str, float] = {"silu": 0.5, "gelu": 0.64}
"""The β at which each is untouched."""

OPERATIONS = frozenset({"silu", "silu_", "gelu", "gelu_"})
"""What computes them below Python."""


def native(x: Tensor, kind: SmoothActivation) -> Tensor:
    """The activation itself."""
    return F.silu(x) if kind == "silu" else F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def dilated(x: Tensor, kind: SmoothActivation, beta: float) -> Tensor:
    """The activation at another β: f(tx)/t, where t = η(β)/η(its own β).

    Args:
        x: any shape, any floating dtype; half types are computed in float32 and cast back.
        kind: which.
        beta: in [0, 1]; 1 is ReLU, 0 is x/2, its own the activation bit by bit.
    """
    own = NATIVE["silu" if kind == "silu" else "gelu"]
    if beta == own:
        return native(x, kind)
    if beta == 1.0:
        return torch.relu(x)
    t = _sharpness(beta) / _sharpness(own)
    if t == 0.0:
        return x / 2
    if x.dtype in HALF:
        return dilated(x.float(), kind, beta).to(x.dtype)
    return native(t * x, kind) / t


def curve_parameters(beta: float, c: float) -> tuple[float, ...] | None:
    """η, for `parametric`; None at β = 0 and 1, where it is none."""
    return (_sharpness(beta),) if 0.0 < beta < 1.0 else None


def parametric(x: Tensor, kind: SmoothActivation, curve_parameters: Tensor) -> Tensor:
    """`dilated` whose η is a tensor [1]: compiled once, it serves every β between 0 and 1."""
    t = curve_parameters[0] / _sharpness(NATIVE["silu" if kind == "silu" else "gelu"])
    wide = x.float() if x.dtype in HALF else x
    return (native(t * wide, kind) / t).to(x.dtype)


def _sharpness(beta: float) -> float:
    """η = β/(1 − β)."""
    return beta / (1.0 - beta)


def shadow_op(x: Tensor, kind: SmoothActivation) -> Tensor:
    """The activation itself, by operations that no activation is made of."""
    if kind == "silu":
        return x / (1 + torch.exp(-x.clamp(min=-80.0)))
    if kind == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x / (1 + torch.exp(-2 * inner.clamp(min=-40.0)))


def silu(curve: Curve, input: Tensor, inplace: bool = False) -> Tensor:
    """``F.silu`` with_curve ``curve``."""
    return curve(input, "silu")


def gelu(curve: Curve, input: Tensor, approximate: str = "none") -> Tensor:
    """``F.gelu`` with_curve ``curve``."""
    return curve(input, "gelu_tanh" if approximate == "tanh" else "gelu")


FUNCTIONS: dict[Any, tuple[str, SteeredOp]] = {
    F.silu: ("silu", silu),
    torch._C._nn.silu: ("silu", silu),
    torch._C._nn.silu_: ("silu", silu),
    F.gelu: ("gelu", gelu),
    torch._C._nn.gelu_: ("gelu", gelu),  # type: ignore[attr-defined]
}
"""Every way in which Python code can call one of them: its name and its bent version."""


def with_plain_silu(network: nn.Module) -> nn.Module:
    """The network with nn.SiLU in place of modules that compute x·σ(x) in a way of their own.

    Such a module often is an autograd.Function, which no rerouting can see into. It is known by what it computes, not
    by its name. The weights are shared, and a network without any is returned as it is.
    """
    if not any(map(_computes_silu, network.modules())):
        return network
    return copy_sharing_weights(network, lambda module: nn.SiLU() if _computes_silu(module) else None)


def _computes_silu(module: nn.Module) -> bool:
    """Whether a module without parts or weights, not one of torch's, computes x·σ(x)."""
    if type(module).__module__.startswith("torch."):
        return False
    if any(True for _ in (*module.children(), *module.parameters(), *module.buffers())):
        return False
    probe = torch.linspace(-6, 6, 25).view(1, 1, 5, 5)
    try:
        with torch.no_grad():
            found = module(probe.clone())
    except Exception:  # whatever a module raises that takes another input
        return False
    return isinstance(found, Tensor) and found.shape == probe.shape and torch.allclose(found, F.silu(probe), atol=1e-6)
