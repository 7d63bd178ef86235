"""A network as attacks run it, at the speed of the hardware; not as it is judged.

Whether an image is lost is decided by the network itself, uncompiled and in full float32 (`harness.engine.evaluate`).
So what is here cannot make a robust image count as lost. It may only lead an attack elsewhere: by float noise where it
compiles, by more in a lower precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.api.records import Compile, Precision
from harness.curvature.families import FAMILIES
from harness.curvature.steering import Steered
from harness.errors import ModelError

HALF: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
COMPILATIONS = 64
"""Of one function, for other shapes and with or without a gradient, before torch gives up; its own default is 8."""


def to_channels_last(network: nn.Module, example: Tensor) -> None:
    """Lay the weights of convolutions out with the channels last, which a CPU computes faster; in place.

    Args:
        network: where it does not run that way (a ``view`` of an activation, say), or is not on a CPU, it is left.
        example: images that it takes, [n, c, h, w].
    """
    if example.is_cuda or not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return
    network.to(memory_format=torch.channels_last)
    try:
        _probe(network, example)
    except Exception:  # whatever a network raises
        network.to(memory_format=torch.contiguous_format)


def wants_compiling(compile: Compile, device: str) -> bool:
    """``auto`` compiles for a GPU. A CPU gains less than compiling costs, unless the run takes hours."""
    return compile == "always" or (compile == "auto" and device.startswith("cuda"))


class ParametricNetwork(nn.Module):
    """One compiled network for every steering of a model: β and c are its inputs, so a grid is compiled once.

    Args:
        steered: at any of the steerings, proven.
    """

    def __init__(self, steered: Steered) -> None:
        super().__init__()
        family = FAMILIES[steered.steering.family]
        self.curve_parameters: Tensor | None = None
        self.run = compiled(steered.with_curve(lambda x, *which: family.parametric(x, *which, self.curve_parameters)))

    def forward(self, x: Tensor, curve_parameters: Tensor) -> Any:
        """The network's results at these dials."""
        self.curve_parameters = curve_parameters
        return self.run(x)


class AtBeta(nn.Module):
    """A dialled network at one steering.

    Args:
        network: shared by all steerings.
        curve_parameters: this one's; see `harness.curvature.families.Family`.
    """

    def __init__(self, network: ParametricNetwork, curve_parameters: Tensor) -> None:
        super().__init__()
        self.network, self.curve_parameters = network, curve_parameters

    def forward(self, x: Tensor) -> Any:
        """The network's own results."""
        return self.network(x, self.curve_parameters)


def compiled(network: nn.Module) -> nn.Module:
    """Compiled at its first call, for batches of any size."""
    torch._dynamo.config.recompile_limit = COMPILATIONS
    return torch.compile(network, dynamic=True)  # type: ignore[return-value]


def half_precision(network: nn.Module, precision: Precision) -> nn.Module:
    """The network in ``precision``, where that is a half one."""
    return HalfPrecision(network, HALF[precision]) if precision in HALF else network


def checked(fast: nn.Module, network: nn.Module, example: Tensor) -> nn.Module:
    """``fast``, after a look at whether it compiles here and does what ``network`` does, forward and backward.

    Raises:
        ModelError: it does not; says why.
    """
    try:
        close = all(
            torch.allclose(a, b, 1e-2, 1e-3)
            for a, b in zip(_probe(fast, example), _probe(network, example), strict=True)
        )
    except Exception as error:  # whatever a compiler raises
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    else:
        if close:
            return fast
        reason = "compiled, it computes something else"
    raise ModelError(
        f"compile: the network cannot be compiled ({reason}); a CPU needs a C++ compiler, a GPU Triton; set "
        "compile=never"
    )


class HalfPrecision(nn.Module):
    """A network in half precision, from and to float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Images in [0, 1] to logits."""
        with torch.autocast(x.device.type, self.dtype):
            return self.network(x).float()  # type: ignore[no-any-return]


@contextmanager
def attacking(precision: Precision) -> Iterator[None]:
    """While an attack runs: TF32 where it is asked for."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if precision == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _probe(network: Callable[[Tensor], Any], example: Tensor) -> tuple[Tensor, Tensor]:
    """The network's logits and a gradient of them."""
    with torch.enable_grad():
        x = example.detach().clone().requires_grad_()
        logits = network(x)
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    return logits.detach(), gradient
