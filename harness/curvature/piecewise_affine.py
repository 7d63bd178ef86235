"""Piecewise-affine activations in terms of φ: the torch functions that compute them, and what replaces each.

ReLU becomes φ; the others are sums of ReLUs, so their steered versions are the same sums of φ:

    LeakyReLU, PReLU, RReLU (slope s):  s·x + (1 − s)·φ(x)
    ReLU6, Hardtanh (from a to b):      a + φ(x − a) − φ(x − b)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.errors import ModelError

Curve = Callable[..., Tensor]
"""Function of the input that takes the place of ReLU; in the smooth family also a function of the activation's kind."""


def relu(curve: Curve, input: Tensor, inplace: bool = False) -> Tensor:
    """Compute φ(x)."""
    return curve(input)


def leaky_relu(curve: Curve, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """Compute s·x + (1 − s)·φ(x), s being the negative slope."""
    return negative_slope * input + (1.0 - negative_slope) * curve(input)


def prelu(curve: Curve, input: Tensor, weight: Tensor) -> Tensor:
    """Compute s·x + (1 − s)·φ(x), with a learned slope s for each channel (dimension 1) or one for all."""
    shaped = weight.view(1, -1, *[1] * (input.ndim - 2)) if weight.numel() > 1 and input.ndim > 1 else weight
    return shaped * input + (1.0 - shaped) * curve(input)


def rrelu(
    curve: Curve,
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool | None = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compute `leaky_relu` with the mean slope, which is RReLU in eval mode.

    Raises:
        ModelError: the module is in training mode.
    """
    if training:
        raise ModelError("RReLU in training mode draws its slopes at random; call network.eval() first")
    return leaky_relu(curve, input, (lower + upper) / 2)


def hardtanh(curve: Curve, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """Compute a + φ(x − a) − φ(x − b), in float32 for half types: rounding both φ would swamp their difference."""
    x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    return (min_val + curve(x - min_val) - curve(x - max_val)).to(input.dtype)


def relu6(curve: Curve, input: Tensor, inplace: bool = False) -> Tensor:
    """Compute φ(x) − φ(x − 6)."""
    return hardtanh(curve, input, 0.0, 6.0)


SteeredOp = Callable[..., Tensor]
"""An activation with its kinks replaced by a curve: called with the curve and the activation's own arguments."""

FUNCTIONS: dict[Any, tuple[str, SteeredOp]] = {
    function: (name, steered_op)
    for name, steered_op, functions in (
        ("relu", relu, (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)),
        (
            "leaky_relu",
            leaky_relu,
            (F.leaky_relu, F.leaky_relu_, torch._C._nn.leaky_relu, torch._C._nn.leaky_relu_),
        ),
        ("prelu", prelu, (F.prelu, torch.prelu, Tensor.prelu)),
        ("rrelu", rrelu, (F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_)),
        ("relu6", relu6, (F.relu6, torch._C._nn.relu6, torch._C._nn.relu6_)),
        ("hardtanh", hardtanh, (F.hardtanh, F.hardtanh_, torch._C._nn.hardtanh, torch._C._nn.hardtanh_)),
    )
    for function in functions
}
"""Every function by which Python code can call one: the activation's name and its steered version."""

Arguments = Callable[[Any], dict[str, Any]]

MODULES: dict[type[nn.Module], tuple[str, SteeredOp, Arguments]] = {
    nn.ReLU: ("relu", relu, lambda module: {}),
    nn.LeakyReLU: ("leaky_relu", leaky_relu, lambda module: {"negative_slope": module.negative_slope}),
    nn.PReLU: ("prelu", prelu, lambda module: {"weight": module.weight}),
    nn.RReLU: (
        "rrelu",
        rrelu,
        lambda module: {"lower": module.lower, "upper": module.upper, "training": module.training},
    ),
    nn.ReLU6: ("relu6", relu6, lambda module: {}),
    nn.Hardtanh: (
        "hardtanh",
        hardtanh,
        lambda module: {"min_val": module.min_val, "max_val": module.max_val},
    ),
}
"""Registered modules of the family: name, steered version, and the arguments that an instance passes to it."""


class Activation(nn.Module):
    """A steered activation module, which takes the place of a registered one.

    Args:
        original: the module that it replaces, which holds the slope, the bounds or the weights.
        curve: φ at one β and c; with `torch.relu` the original itself is run.
    """

    def __init__(self, original: nn.Module, curve: Curve) -> None:
        super().__init__()
        self.original = original
        self.curve = curve
        self.training = original.training

    @property
    def name(self) -> str:
        """Name of the activation, as in `MODULES`."""
        return MODULES[type(self.original)][0]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the steered activation elementwise."""
        if self.curve is torch.relu:
            return self.original(x)  # type: ignore[no-any-return]
        _, steered_op, arguments = MODULES[type(self.original)]
        return steered_op(self.curve, x, **arguments(self.original))


PIECEWISE_AFFINE = {
    "relu": "relu", "relu_": "relu", "leaky_relu": "leaky_relu", "leaky_relu_": "leaky_relu",
    "_prelu_kernel": "prelu", "prelu": "prelu", "rrelu_with_noise": "rrelu", "rrelu_with_noise_": "rrelu",
    "hardtanh": "hardtanh", "hardtanh_": "hardtanh", "relu6": "relu6", "relu6_": "relu6",
}  # fmt: skip
"""ATen operations that compute one of them, by name: what a call comes down to below Python."""

OTHERS = {
    "silu": "silu", "silu_": "silu", "gelu": "gelu", "gelu_": "gelu", "elu": "elu", "elu_": "elu", "celu": "celu",
    "selu": "selu", "mish": "mish", "mish_": "mish", "softplus": "softplus", "hardswish": "hardswish",
    "hardswish_": "hardswish", "hardsigmoid": "hardsigmoid", "sigmoid": "sigmoid", "sigmoid_": "sigmoid",
    "tanh": "tanh", "tanh_": "tanh", "softshrink": "softshrink", "hardshrink": "hardshrink",
    "log_sigmoid_forward": "logsigmoid", "threshold": "threshold", "threshold_": "threshold",
}  # fmt: skip
"""ATen operations that compute activations on which the paper's CT does not act, by name."""
