"""SiLU and GELU made sharper or smoother: φ along c = 1, from their own β on. An extension, not in the paper.

With c = 1, φ(x; β) = x·σ(ηx) with η = β/(1 − β) (Eq. 7 of arXiv 2502.07783), and x·σ(ηx) = SiLU(ηx)/η: all of them are
one curve, dilated. SiLU is the one with η = 1, β = 1/2. GELU is nearest to η = 16/9, β = 0.64 (within 0.015
everywhere); it is dilated in the same way, so that at its own β it is GELU bit by bit. Both become ReLU as β → 1 and
x/2 at β = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.curvature.phi import HALF, check_rows
from harness.curvature.piecewise_affine import Curve, SteeredOp
from harness.curvature.shared_copy import copy_sharing_weights
from harness.util.device_errors import raise_of_device

SmoothActivation = Literal["silu", "gelu", "gelu_tanh"]

NATIVE: Mapping[str, float] = {"silu": 0.5, "gelu": 0.64}
"""β at which each activation is untouched."""

OPERATIONS = frozenset({"silu", "silu_", "gelu", "gelu_"})
"""ATen operations that compute them."""


def original_op(x: Tensor, kind: SmoothActivation) -> Tensor:
    """Compute the untouched activation."""
    return F.silu(x) if kind == "silu" else F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def dilated(x: Tensor, kind: SmoothActivation, beta: float) -> Tensor:
    """Compute the activation f at another β: f(tx)/t, where t = η(β)/η(native β).

    Args:
        x: tensor of any shape and floating dtype; half types are computed in float32 and cast back.
        kind: the activation f.
        beta: steering parameter in [0, 1]; 1 is ReLU, 0 is x/2, and the native β is f bit by bit.
    """
    own = NATIVE["silu" if kind == "silu" else "gelu"]
    if beta == own:
        return original_op(x, kind)
    if beta == 1.0:
        return torch.relu(x)
    t = _sharpness(beta) / _sharpness(own)
    if t == 0.0:
        return x / 2
    if x.dtype in HALF:
        return dilated(x.float(), kind, beta).to(x.dtype)
    return original_op(t * x, kind) * (1.0 / t)


def curve_parameters(beta: float, c: float) -> tuple[float, ...] | None:
    """Return (t, 1/t) of SiLU and of GELU for `parametric`; None at β = 0 and 1, where the dilation degenerates."""
    if not 0.0 < beta < 1.0:
        return None
    silu, gelu = (_sharpness(beta) / _sharpness(NATIVE[kind]) for kind in ("silu", "gelu"))
    return silu, 1.0 / silu, gelu, 1.0 / gelu


def parametric(x: Tensor, kind: SmoothActivation, curve_parameters: Tensor) -> Tensor:
    """Compute `dilated` with its parameters given as a tensor: one steering for all images or one for each.

    Args:
        x: tensor of any shape and floating dtype.
        kind: the activation.
        curve_parameters: values of the function of that name, as a tensor [4]; or [n, 4], a row an image, where x has
            n images in dimension 0.

    Raises:
        ModelError: x has another number of images than the parameters have rows.
    """
    check_rows(x, curve_parameters)
    columns = curve_parameters[..., :2] if kind == "silu" else curve_parameters[..., 2:]
    if curve_parameters.ndim == 2:
        columns = columns.reshape(len(x), *[1] * (x.ndim - 1), 2)
    t, inverse = columns.unbind(-1)
    wide = x.float() if x.dtype in HALF else x
    return (original_op(t * wide, kind) * inverse).to(x.dtype)


def _sharpness(beta: float) -> float:
    """Return η = β/(1 − β)."""
    return beta / (1.0 - beta)


def shadow_op(x: Tensor, kind: SmoothActivation) -> Tensor:
    """Compute the untouched activation by operations that are not among those watched for in the proof."""
    if kind == "silu":
        return x / (1 + torch.exp(-x.clamp(min=-80.0)))
    if kind == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x / (1 + torch.exp(-2 * inner.clamp(min=-40.0)))


def silu(curve: Curve, input: Tensor, inplace: bool = False) -> Tensor:
    """Compute ``F.silu`` with ``curve`` in its place."""
    return curve(input, "silu")


def gelu(curve: Curve, input: Tensor, approximate: str = "none") -> Tensor:
    """Compute ``F.gelu`` with ``curve`` in its place."""
    return curve(input, "gelu_tanh" if approximate == "tanh" else "gelu")


FUNCTIONS: dict[Any, tuple[str, SteeredOp]] = {
    F.silu: ("silu", silu),
    torch._C._nn.silu: ("silu", silu),
    torch._C._nn.silu_: ("silu", silu),
    F.gelu: ("gelu", gelu),
    torch._C._nn.gelu_: ("gelu", gelu),  # type: ignore[attr-defined]
}
"""Every function by which Python code can call one: the activation's name and its steered version."""


def with_plain_silu(network: nn.Module) -> nn.Module:
    """Replace modules that implement x·σ(x) themselves by nn.SiLU.

    Such a module often wraps an autograd.Function, into which rerouting cannot see. It is recognised by what it
    computes, not by its name.

    Returns:
        A copy that shares the weights; the network itself where it has no such module.
    """
    if not any(map(_computes_silu, network.modules())):
        return network
    return copy_sharing_weights(network, lambda module: nn.SiLU() if _computes_silu(module) else None)


def _computes_silu(module: nn.Module) -> bool:
    """Tell whether a module without children or weights, not one of torch's own, computes x·σ(x)."""
    if type(module).__module__.startswith("torch."):
        return False
    if any(True for _ in (*module.children(), *module.parameters(), *module.buffers())):
        return False
    probe = torch.linspace(-6, 6, 25).view(1, 1, 5, 5)
    try:
        with torch.no_grad():
            found = module(probe.clone())
    except Exception as error:  # a module that takes other inputs may raise anything
        raise_of_device(error)
        return False
    return isinstance(found, Tensor) and found.shape == probe.shape and torch.allclose(found, F.silu(probe), atol=1e-6)
