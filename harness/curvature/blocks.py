"""φ and its derivative on a CPU: in blocks that stay in the cache, with bits that depend on nothing but values.

    φ(x) = c·x·σ(ηx) + (1 − c)·(relu(x) + log1p(t)/γ)        with t = exp(−γ|x|) in [0, 1]

torch's log1p and softplus take up to twenty times as long as its exp2 and sigmoid, so in float32 log1p is a polynomial:
log1p(t) = 2·artanh(z) with z = t/(2 + t) in [0, 1/3], and artanh(z)/z is nearly a cubic in z².

torch computes the last few elements of a tensor, which do not fill a vector, by other instructions, and the last bits
of their sigmoid and exp2 by the way. Here these two run on scratch memory filled up to whole vectors. So a value's bits
do not depend on its place in the batch, and φ is the same function with one curve for all images and one for each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 65_536
"""Elements of a block, for each thread: with its scratch memory it fits into a core's second cache."""
VECTOR = 64
"""Elements that scratch memory is a multiple of: at least as many as torch's kernels take at a time."""

MONIC = (5.710300939863924, 1.9039482962390077, 1.1259045146692177)
"""Coefficients, constant first, of the cubic in z² that is nearest to artanh(z)/z, divided by the leading one."""
LEADING = 0.17512198483733912
"""Leading coefficient: 2·z·(cubic) is within 5.8e-8 of log1p(t) for all t in [0, 1]."""


class Columns(NamedTuple):
    """Parameters of the curve, each a tensor that broadcasts over x: see `harness.curvature.phi.curve_parameters`."""

    gamma: Tensor
    eta: Tensor
    c: Tensor
    rest: Tensor
    decay: Tensor
    width: Tensor
    cubic: Tensor


def value(x: Tensor, columns: Columns, c: float | None = None) -> Tensor:
    """Compute φ.

    Args:
        x: float32 or float64 tensor of any shape, on the CPU.
        columns: parameters of x's dtype, each of no dimension, or [n, 1] where x has n images.
        c: weight of the swish term where it is known: at 0 and 1 a term is saved.

    Returns:
        φ(x), in the memory format of x.
    """
    kernel = _swish if c == 1.0 else _softplus if c == 0.0 else _value
    return _in_blocks(kernel, columns, x)


def gradient(grad: Tensor, x: Tensor, columns: Columns, c: float | None = None) -> Tensor:
    """Compute grad·φ'(x); see `value`."""
    kernel = _swish_gradient if c == 1.0 else _softplus_gradient if c == 0.0 else _gradient
    return _in_blocks(kernel, columns, x, grad)


class Scratch(NamedTuple):
    """Scratch memory of one block.

    Args:
        full: one-dimensional, filled up to whole vectors; what is beyond the block's end is arbitrary.
        block: the same memory, in the shape of the block.
    """

    full: Tensor
    block: Tensor


Kernel = Callable[..., None]
"""Function of the output's block, the input's blocks, the columns of their images and three pieces of scratch."""


def _swish(out: Tensor, x: Tensor, columns: Columns, scratch: list[Scratch]) -> None:
    a = scratch[0]
    torch.mul(x, columns.eta, out=a.block)
    a.full.sigmoid_()
    torch.mul(a.block, x, out=out)


def _softplus(out: Tensor, x: Tensor, columns: Columns, scratch: list[Scratch]) -> None:
    """Compute (1 − c)·softplus(γx)/γ."""
    a, b, t = scratch
    torch.abs(x, out=t.block)
    t.block.mul_(columns.decay)
    t.full.exp2_()
    if x.dtype == torch.float32:
        torch.add(t.full, _constant(2.0), out=a.full)
        z, square = t.full.div_(a.full), b.full
        torch.mul(z, z, out=square)
        torch.add(square, _constant(MONIC[2]), out=a.full)
        a.full.mul_(square).add_(_constant(MONIC[1])).mul_(square).add_(_constant(MONIC[0])).mul_(z)
        a.block.mul_(columns.cubic)
    else:
        torch.log1p(t.full, out=a.full)
        a.block.mul_(columns.width)
    torch.clamp_min(x, 0.0, out=t.block)
    t.block.mul_(columns.rest)
    torch.add(t.block, a.block, out=out)


def _value(out: Tensor, x: Tensor, columns: Columns, scratch: list[Scratch]) -> None:
    a, b, _ = scratch
    _softplus(b.block, x, columns, scratch)
    torch.mul(x, columns.eta, out=a.block)
    a.full.sigmoid_()
    torch.add(b.block, a.block.mul_(x).mul_(columns.c), out=out)


def _swish_gradient(out: Tensor, x: Tensor, grad: Tensor, columns: Columns, scratch: list[Scratch]) -> None:
    torch.mul(_swish_slope(x, columns, scratch), grad, out=out)


def _softplus_gradient(out: Tensor, x: Tensor, grad: Tensor, columns: Columns, scratch: list[Scratch]) -> None:
    torch.mul(_softplus_slope(x, columns, scratch), grad, out=out)


def _gradient(out: Tensor, x: Tensor, grad: Tensor, columns: Columns, scratch: list[Scratch]) -> None:
    slope = _softplus_slope(x, columns, scratch).mul_(columns.rest)
    slope.add_(_swish_slope(x, columns, scratch).mul_(columns.c))
    torch.mul(slope, grad, out=out)


def _swish_slope(x: Tensor, columns: Columns, scratch: list[Scratch]) -> Tensor:
    """Compute σ(u)·(1 + u·(1 − σ(u))), u = ηx."""
    a, b, _ = scratch
    u, sigma = a.full, b.full
    torch.mul(x, columns.eta, out=a.block)
    torch.sigmoid(u, out=sigma)
    torch.ops.aten.sigmoid_backward.grad_input(u, sigma, grad_input=u)
    u.add_(sigma)
    return a.block


def _softplus_slope(x: Tensor, columns: Columns, scratch: list[Scratch]) -> Tensor:
    t = scratch[2]
    torch.mul(x, columns.gamma, out=t.block)
    t.full.sigmoid_()
    return t.block


def _in_blocks(kernel: Kernel, columns: Columns, *inputs: Tensor) -> Tensor:
    """Run a kernel over inputs of one shape."""
    x = inputs[0]
    size = BLOCK * torch.get_num_threads()
    contiguous = x.is_contiguous()
    if not contiguous or len(inputs) > 1:
        channels_last = not contiguous and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if channels_last else torch.contiguous_format
        inputs = tuple(tensor.contiguous(memory_format=order) for tensor in inputs)
        contiguous = not channels_last
    out = torch.empty_like(inputs[0])
    numel = out.numel()
    if numel == 0:
        return out
    if contiguous and columns.c.ndim == 0 and numel <= size:
        kernel(out, *inputs, columns, _scratch(x.dtype, out.shape, size))
        return out
    flat = [tensor.as_strided((numel,), (1,)) for tensor in (out, *inputs)]
    for (block, *blocks), own in _blocks(flat, columns, size):
        kernel(block, *blocks, own, _scratch(x.dtype, block.shape, size))
    return out


def _blocks(flat: list[Tensor], columns: Columns, size: int) -> Iterator[tuple[tuple[Tensor, ...], Columns]]:
    """Cut tensors into blocks: of elements where all share one curve; of whole images, or parts of one, otherwise."""
    if columns.c.ndim == 0:
        if len(flat[0]) <= size:
            yield tuple(flat), columns
            return
        for blocks in zip(*(tensor.split(size) for tensor in flat), strict=True):  # type: ignore[no-untyped-call]
            yield blocks, columns
        return
    images = len(columns.c)
    elements = len(flat[0]) // images
    rows = max(1, min(images, size // elements))
    by_image = [tensor.view(images, elements).split(rows) for tensor in flat]  # type: ignore[no-untyped-call]
    own = columns if rows == images else None
    for start, *chunks in zip(range(0, images, rows), *by_image, strict=True):
        part = own or Columns(*(column[start : start + rows] for column in columns))
        if elements <= size:
            yield tuple(chunks), part
            continue
        for blocks in zip(*(chunk.split(size, dim=1) for chunk in chunks), strict=True):
            yield blocks, part


class _Memory(threading.local):
    """Scratch memory of a thread, kept from call to call: fresh memory would cost a page fault every 4 KiB."""

    def __init__(self) -> None:
        self.parts: dict[tuple[torch.dtype, int], tuple[Tensor, ...]] = {}
        self.by_shape: dict[tuple[torch.dtype, torch.Size, int], list[Scratch]] = {}


_MEMORY = _Memory()
_SHAPES_KEPT = 256


def _scratch(dtype: torch.dtype, shape: torch.Size, size: int) -> list[Scratch]:
    """Return three pieces of this thread's scratch memory for a block of this shape.

    Args:
        dtype: float32 or float64.
        shape: shape of the block.
        size: number of elements of the largest block.
    """
    known = _MEMORY.by_shape
    key = dtype, shape, size
    if key not in known:
        if len(known) >= _SHAPES_KEPT:
            known.clear()
        if (dtype, size) not in _MEMORY.parts:
            with torch.inference_mode(False):
                _MEMORY.parts[dtype, size] = torch.zeros(3, _whole(size), dtype=dtype, device="cpu").unbind()
        numel = shape.numel()
        full = [part[: _whole(numel)] for part in _MEMORY.parts[dtype, size]]
        known[key] = [Scratch(part, part[:numel].view(shape)) for part in full]
    return known[key]


def _whole(numel: int) -> int:
    """Return ``numel`` rounded up to whole vectors."""
    return -(-numel // VECTOR) * VECTOR


_CONSTANTS: dict[float, Tensor] = {}


def _constant(number: float) -> Tensor:
    """Return a number as a float32 tensor, with which torch calculates at half the price of a Python float."""
    if number not in _CONSTANTS:
        with torch.inference_mode(False):
            _CONSTANTS[number] = torch.tensor(number, dtype=torch.float32, device="cpu")
    return _CONSTANTS[number]
