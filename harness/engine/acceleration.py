"""Acceleration of attacks: networks that are compiled, laid out for the hardware, or in TF32; see `half_precision` too.

None of them judges: whether an image is fooled is decided by the plain network, uncompiled and in full float32
(`harness.engine.evaluate`). So nothing here can make a robust image count as fooled. It can only lead an attack along
another path: by float noise where the network is compiled, by more in a lower precision.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.api.records import Compile, Precision
from harness.api.work import Task
from harness.curvature.mixed import Mixed, probe
from harness.engine.fixed_width import FixedWidth, Widths
from harness.engine.half_precision import half_precision, with_low_weights
from harness.engine.numerics import float32_by, same_bits
from harness.errors import ModelError
from harness.util.device_errors import raise_of_device

RECOMPILE_LIMIT = 64
"""Compilations of a function, for other shapes and with or without gradients, before torch gives up; torch has 8."""
WORTH = 12e12
"""Passes of a run, times the bytes that a network keeps of an image, from which on compiling takes a small part of the
run: at some 25 µs a megabyte, as estimated for one H100, five minutes."""
ROUNDING: dict[Precision, float] = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 0.1, "float16": 0.02}
"""Largest distance of a compiled network's logits and gradients from those of the same network uncompiled, relative to
their length, by precision: a compiler rounds at other places."""


def to_channels_last(network: nn.Module, example: Tensor, precision: Precision = "float32") -> None:
    """Lay out convolution weights with the channels last, in place; a CPU and tensor cores compute them faster.

    A network that does not run that way (one that takes a ``view`` of an activation, say) is left as it is.

    Args:
        network: the network, on any device; on a GPU it is left as it is in float32, which has no tensor cores.
        example: images that the network takes, [n, c, h, w].
        precision: precision of the network under attack.
    """
    if example.is_cuda and precision == "float32":
        return
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return
    network.to(memory_format=torch.channels_last)
    try:
        probe(network, example)
    except Exception as error:  # whatever a network raises
        raise_of_device(error)
        network.to(memory_format=torch.contiguous_format)


def wants_compiling(compile: Compile, device: str, work: float) -> bool:
    """Return whether to compile; with ``auto`` on a GPU only, and only where it is worth it.

    On a CPU compiling costs more than it saves. What decides is the same whoever computes, and however fast.

    Args:
        compile: what the benchmark asks for.
        device: type of the device to compute on.
        work: passes of the whole run, times the bytes that the network keeps of an image.
    """
    return compile == "always" or (compile == "auto" and device == "cuda" and work >= WORTH)


class Fast(NamedTuple):
    """A network to attack.

    Args:
        network: the network at its widths.
        compiled: whether it runs compiled.
    """

    network: FixedWidth
    compiled: bool


def fast(
    task: Task,
    network: nn.Module,
    work: float,
    at_widths: Callable[..., FixedWidth],
    compile: Callable[[nn.Module], nn.Module],
) -> Fast:
    """Return a network in the precision of the attacks; compiled, if that is wanted and it computes the same.

    Args:
        task: says which precision, and whether to compile.
        network: the network in float32.
        work: see `wants_compiling`.
        at_widths: puts a network at the widths of its device, or at others; see `FixedWidth`.
        compile: compiles a network.

    Raises:
        ModelError: it must be compiled, and cannot be.
    """
    with attacking(task.precision):
        plain = at_widths(half_precision(network, task.precision))
        low = with_low_weights(network, task.precision)
        if low is not network:  # one that reads a weight itself may compute something else
            cast = at_widths(half_precision(low, task.precision))
            plain, network = (cast, low) if same_bits(cast.at_reference, plain.at_reference) else (plain, network)
        if not wants_compiling(task.compile, plain.at_reference[0].device.type, work):
            return Fast(plain, compiled=False)
        try:
            made = half_precision(compile(network), task.precision)
            return Fast(_checked(task, plain, made, at_widths), compiled=True)
        except Exception as error:  # whatever a compiler raises
            raise_of_device(error)
            _refuse_or_warn(task, error)
            return Fast(plain, compiled=False)


def _checked(task: Task, plain: FixedWidth, network: nn.Module, at_widths: Callable[..., FixedWidth]) -> FixedWidth:
    """Return a compiled network at two widths at most, if it computes the same as the plain one.

    Logits and gradients are compared in the precision and at a shape that it runs in; of its other shapes `FixedWidth`
    knows that they give the same bits.
    """
    if not plain.reference:
        raise ModelError("it answers by chance, so that nothing can be compared")
    other = plain.width if plain.width != plain.reference else plain.narrowest
    widths = Widths((plain.reference,), tuple(sorted({plain.reference, other})))
    fixed = at_widths(network, widths=widths, modes="both")
    if not fixed.reference:
        raise ModelError("compiled, it answers by chance")
    for found, expected in zip(fixed.at_reference, (*plain.at_reference, plain.at_reference[0]), strict=True):
        distance = torch.linalg.vector_norm((found - expected).double())
        if not distance <= ROUNDING[task.precision] * torch.linalg.vector_norm(expected.double()):  # NaN fails too
            raise ModelError("compiled, it computes something else")
    return fixed


def _refuse_or_warn(task: Task, error: Exception) -> None:
    """Raise ModelError if a network must be compiled, otherwise warn that it is not."""
    reason = str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
    message = f"the network cannot be compiled ({reason.strip().splitlines()[0]})"
    if task.compile == "always":
        raise ModelError(f"compile: {message}; a CPU needs a C++ compiler, a GPU Triton; set compile=never") from error
    warnings.warn(f"{task.label}: {message}; it is attacked uncompiled, which is slower", stacklevel=2)


def compiled(network: nn.Module) -> nn.Module:
    """Return ``network`` as compiled at its first call, anew for each shape; of a mixed one, for any β and c.

    Fixed shapes let the compiler choose the layout of every activation.
    """
    if isinstance(network, Mixed):
        return network.through(compiled)
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._functorch.config.donated_buffer = False  # FAB takes a gradient for each class of one forward pass
    return torch.compile(network, dynamic=False, options={"deterministic": True})  # type: ignore[return-value]


def attacking(precision: Precision) -> AbstractContextManager[None]:
    """Return a block in which matrix products and convolutions are TF32 if ``precision`` says so, else full float32."""
    return float32_by("tf32" if precision == "tf32" else "ieee")
