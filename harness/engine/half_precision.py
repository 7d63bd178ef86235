"""Networks in half precision, for attacks alone: what they find is judged in float32."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from harness.api.records import Precision
from harness.curvature.shared_copy import copy_sharing_weights
from harness.errors import ModelError

HALF: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def half_precision(network: nn.Module, precision: Precision) -> nn.Module:
    """Return ``network`` in half precision if ``precision`` is one, otherwise as it is."""
    return HalfPrecision(network, HALF[precision]) if precision in HALF else network


def with_low_weights(network: nn.Module, precision: Precision) -> nn.Module:
    """Return a network whose weights are cast to half precision once, rather than in every pass; the bits are the same.

    A network that cannot be copied is left as it is.

    Args:
        network: the network, which is not changed; all other weights are shared.
        precision: precision of the network under attack; with float32 and tf32 the network itself is returned.
    """
    if precision not in HALF:
        return network
    dtype = HALF[precision]

    def cast(module: nn.Module) -> nn.Module | None:
        if type(module) not in (nn.Conv2d, nn.Linear) or set(module._parameters) != {"weight", "bias"}:
            return None  # autocast casts the others' weights, or, as under weight_norm, what is computed from them
        other = copy.copy(module)
        other._parameters = {
            name: None if weight is None else nn.Parameter(weight.to(dtype), requires_grad=False)
            for name, weight in module._parameters.items()
        }
        return other

    try:
        return copy_sharing_weights(network, cast)
    except ModelError:  # it cannot be copied
        return network


class HalfPrecision(nn.Module):
    """A network that computes in half precision, from float32 images to float32 logits.

    In float16, gradients far below 1 would vanish. So each image's gradient with respect to its logits is scaled to
    about 1 by a power of two, and its gradient with respect to the pixels scaled back, in float32.

    Args:
        network: the network in float32.
        dtype: bfloat16 or float16.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor, *rows: Tensor) -> Tensor:
        """Return the logits, float32 [n, classes], of images [n, c, h, w] in [0, 1]."""
        scales: list[Tensor] = []
        scaled = self.dtype == torch.float16 and x.requires_grad and torch.is_grad_enabled()
        with torch.autocast(x.device.type, self.dtype, cache_enabled=False):  # a CUDA graph would keep the cache
            logits: Tensor = self.network(_ScaledBack.apply(x, scales) if scaled else x, *rows).float()
        return _Scaled.apply(logits, scales) if scaled else logits


class _Scaled(torch.autograd.Function):
    """The same numbers; their gradients are scaled to below 1, each row by a power of two."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, scales: list[Tensor]) -> Tensor:
        ctx.scales = scales
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        largest = gradient.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
        scale = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent)
        ctx.scales[:] = [scale]
        return gradient * scale[:, None], None


class _ScaledBack(torch.autograd.Function):
    """The same images; their gradients are scaled back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: list[Tensor]) -> Tensor:
        ctx.scales = scales
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.scales
        return gradient / scale.view(-1, *[1] * (gradient.ndim - 1)), None
