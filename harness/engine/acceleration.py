"""Acceleration of attacks: networks that are compiled, laid out for the hardware, or in half precision.

None of them judges: whether an image is fooled is decided by the plain network, uncompiled and in full float32
(`harness.engine.evaluate`). So nothing here can make a robust image count as fooled. It can only lead an attack along
another path: by float noise where the network is compiled, by more in a lower precision.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from harness.api.records import Compile, Precision
from harness.curvature.mixed import Mixed, probe
from harness.engine.numerics import float32_by
from harness.errors import ModelError
from harness.util.device_errors import raise_of_device

HALF: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
RECOMPILE_LIMIT = 64
"""Compilations of a function, for other shapes and with or without gradients, before torch gives up; torch has 8."""


def to_channels_last(network: nn.Module, example: Tensor) -> None:
    """Lay out convolution weights with the channels last, in place; a CPU computes them faster.

    A network that does not run that way (one that takes a ``view`` of an activation, say) is left as it is.

    Args:
        network: the network, on any device; on a GPU it is left as it is.
        example: images that the network takes, [n, c, h, w].
    """
    if example.is_cuda or not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return
    network.to(memory_format=torch.channels_last)
    try:
        probe(network, example)
    except Exception as error:  # whatever a network raises
        raise_of_device(error)
        network.to(memory_format=torch.contiguous_format)


def wants_compiling(compile: Compile, device: str) -> bool:
    """Return whether to compile: with ``auto`` on a GPU only, since on a CPU compiling costs more than it saves."""
    return compile == "always" or (compile == "auto" and device.startswith("cuda"))


def compiled(network: nn.Module) -> nn.Module:
    """Return ``network`` as compiled at its first call, for batches of any size; of a mixed one, for any β and c."""
    if isinstance(network, Mixed):
        return network.through(compiled)
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    known = hasattr(torch._inductor.config, "deterministic")  # since torch 2.9
    return torch.compile(network, dynamic=True, options={"deterministic": True} if known else None)  # type: ignore[return-value]


def checked(fast: nn.Module, network: nn.Module, example: Tensor, *rows: Tensor) -> nn.Module:
    """Return ``fast`` if it compiles here and agrees with ``network``, forward and backward.

    Args:
        fast: the compiled network.
        network: the same network, uncompiled.
        example: images that it takes, [n, c, h, w].
        rows: what else it takes, a row for each image.

    Raises:
        ModelError: it does not compile, or does not agree.
    """
    try:
        close = all(
            torch.allclose(a, b, 1e-2, 1e-3)
            for a, b in zip(probe(fast, example, *rows), probe(network, example, *rows), strict=True)
        )
    except Exception as error:  # whatever a compiler raises
        raise_of_device(error)
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    else:
        if close:
            return fast
        reason = "compiled, it computes something else"
    raise ModelError(
        f"compile: the network cannot be compiled ({reason}); a CPU needs a C++ compiler, a GPU Triton; set "
        "compile=never"
    )


def half_precision(network: nn.Module, precision: Precision) -> nn.Module:
    """Return ``network`` in half precision if ``precision`` is one, otherwise as it is."""
    return HalfPrecision(network, HALF[precision]) if precision in HALF else network


class HalfPrecision(nn.Module):
    """A network that computes in half precision, from float32 images to float32 logits.

    Args:
        network: the network in float32.
        dtype: bfloat16 or float16.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor, *rows: Tensor) -> Tensor:
        """Return the logits, float32 [n, classes], of images [n, c, h, w] in [0, 1]."""
        with torch.autocast(x.device.type, self.dtype):
            return self.network(x, *rows).float()  # type: ignore[no-any-return]


def attacking(precision: Precision) -> AbstractContextManager[None]:
    """Return a block in which matrix products and convolutions are TF32 if ``precision`` says so, else full float32."""
    return float32_by("tf32" if precision == "tf32" else "ieee")
