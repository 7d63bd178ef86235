"""Batches of proven widths: a network gives an image the same bits, whatever it is batched with and wherever it stands.

A network's last bits may depend on the shape of the batch, since kernels add up in another order. So a network is
called only at widths at which it was seen to give the bits of one reference width; what is left over is padded.

On a CPU most widths give the same bits, so the reference is narrow, and the width is the fastest. On a GPU few do, and
an image of a batch that keeps it busy costs hardly more than one of a wider batch: there the reference is just so wide,
and follows from the network alone. It is no wider, since all that is left of a stage may have to be padded to it:
Square asks about a few surviving images 5,000 times.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import chain
from time import perf_counter
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from harness.engine.numerics import same_bits
from harness.engine.verification import answers_for
from harness.errors import ModelError
from harness.util.device_errors import give_back_memory, is_out_of_memory, raise_of_device

T = TypeVar("T")
LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Widths that are tried on a CPU."""
ROOM = 1 << 30
"""Bytes of activations of a batch on a GPU, at most: enough to keep it busy, and a small part of its memory."""
NARROW = 16
"""Share of the widest batch of a GPU, as a divisor, that the narrowest one is."""
WASTE = 1.5
"""Most images computed for each image asked for, where a narrower batch and another one would do."""
GAIN = 0.93
"""Time an image takes at twice the width, as a share, from which on a wider batch is not worth its memory."""
ROUNDING = 1e-3
"""Largest relative difference that is taken for rounding."""
LONGEST = 2.0
"""Seconds of a forward and a backward pass beyond which batches are not made wider."""


class Widths(NamedTuple):
    """Widths that are tried.

    Args:
        references: widths of reference, the first at which a network does not depend on company and place.
        ladder: all widths, in ascending order.
    """

    references: tuple[int, ...]
    ladder: tuple[int, ...]


ON_A_CPU = Widths((16, 32, 64, 8, 4, 2, 1), LADDER)


def on_a_gpu(kept: int, widest: int = LADDER[-1]) -> Widths:
    """Return the widths of a GPU.

    Args:
        kept: bytes that the network keeps of an image for the backward pass.
        widest: widest batch that is allowed.
    """
    fitting = max(min(ROOM // kept, widest), 1).bit_length()
    references = tuple(1 << power for power in reversed(range(fitting)))
    return Widths(references, tuple(width for width in reversed(references) if width * NARROW >= references[0]))


class FixedWidth(nn.Module):
    """A network that is called only at widths at which it gives the same bits.

    Args:
        network: network from images [n, c, h, w], and any tensors with a row for each image, to answers [n, k].
        example: images that it takes, [m, c, h, w].
        rows: the other tensors for these images, [m, …] each.
        widest: widest batch that is allowed.
        widths: widths that are tried.
        modes: "both" to compare the bits of passes that record no gradient too, as of a compiled network, which is
            another program then.
    """

    reference: int
    """Width whose bits all others have; 0 where the network answers by chance, so that there are none to keep."""
    classes: int
    """Number of answers for an image, k."""
    at_reference: tuple[Tensor, ...]
    """Logits, gradients, and with ``modes`` "both" the logits of a pass without gradients, at the reference width."""
    used: int
    """Widest batch that it was called with."""

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        *rows: Tensor,
        widest: int = LADDER[-1],
        widths: Widths = ON_A_CPU,
        modes: Literal["gradient", "both"] = "gradient",
    ) -> None:
        super().__init__()
        self.network, self.widest, self.widths, self.modes, self.used = network, widest, widths, modes, 0
        self._agrees: dict[int, bool] = {}
        self._example, self._rows = example.detach(), rows
        self.reference = self._find_reference()

    def forward(self, x: Tensor, *rows: Tensor) -> Any:
        """Return the answers [n, k] for images [n, c, h, w], for any n ≥ 1; gradients flow."""
        answers = []
        for start, stop, width in self.cut(len(x)):
            self.used = max(self.used, width)
            part = [pad(tensor[start:stop], width) for tensor in (x, *rows)]
            answers.append(answers_for(part[0], self.network(*part))[: stop - start])
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def cut(self, n: int) -> Iterator[tuple[int, int, int]]:
        """Yield the batches of ``n`` images: from, up to, and the width to which they are padded."""
        start = 0
        while start < n:
            width = self._width(n - start)
            stop = min(start + width, n)
            yield start, stop, width
            start = stop

    def _width(self, n: int) -> int:
        """Return the width at which to compute the next of ``n`` images."""
        few = len(self._ladder) <= 2
        allowed = [width for width in self._ladder if width <= self.widest]
        near = [width for width in allowed if few or width <= 2 * n]
        wider = (width for width in near if n <= width <= WASTE * n)
        narrower = (width for width in reversed(near) if width <= n)
        padded = (width for width in allowed if width > n)
        return next(width for width in chain(wider, narrower, padded, self._ladder) if self.agrees(width))

    @property
    def _ladder(self) -> tuple[int, ...]:
        """The widths, the reference among them."""
        return tuple(sorted({*self.widths.ladder, self.reference} - {0}))

    def rows_for(self, n: int) -> int:
        """Return the number of rows that ``n`` images are padded to where there are to be few such numbers.

        That is the narrowest width times a power of two.
        """
        return self.narrowest << (-(-n // self.narrowest) - 1).bit_length()

    @property
    def narrowest(self) -> int:
        """Narrowest width at which the network gives the same bits."""
        return next(width for width in self._ladder if self.agrees(width))

    def agrees(self, width: int) -> bool:
        """Return whether the network gives the bits of the reference width at another one, and fits; tried once."""
        if self.reference in (0, width):
            return True
        if width not in self._agrees:
            self._agrees[width] = bool(if_it_fits(lambda: self._same_bits(self.at_reference, width)))
        return self._agrees[width]

    def _find_reference(self) -> int:
        for width in self.widths.references:
            if (found := if_it_fits(partial(self._try_reference, width))) is not None:
                return found
            if not hasattr(self, "classes"):
                warnings.warn(f"out of memory in batches of {width} images; trying narrower ones", stacklevel=2)
        if hasattr(self, "classes"):
            raise ModelError("its last bits depend on the rest of the batch")
        raise ModelError(f"not one image at a time fits in the memory of {self._example.device}; free some of it")

    def _try_reference(self, width: int) -> int | None:
        """Return ``width`` if it can be the reference, or 0 if the network answers by chance."""
        first = self._first_look(width)
        self.classes, self.at_reference = first[0].shape[1], first
        if not same_bits(first, self._look(*self._batch(width))):
            return 0
        return width if width == 1 or self._same_bits(first, width) else None

    def _first_look(self, width: int) -> tuple[Tensor, ...]:
        try:
            return self._look(*self._batch(width))
        except Exception as error:
            raise_of_device(error)
            if width > 1 or not hasattr(self, "classes"):
                raise
            raise ModelError(
                f"an image's answer depends on its batch, and it answers none for an image alone ({error}); call "
                "network.eval(), or take out of it what looks at the batch",
                "batch_dependent",
            ) from error

    @cached_property
    def depends_on_batch(self) -> bool:
        """True if an image's answer depends by more than rounding on its batch: its company, its place, its size."""
        for width in self.widths.references if self.reference else ():
            if width > 1 and (found := if_it_fits(partial(self._is_another_alone, width))) is not None:
                return found
        return False

    @torch.no_grad()
    def _is_another_alone(self, width: int) -> bool:
        """Return whether the first and the last image of a batch are answered otherwise alone, or in its reverse."""
        images = self._batch(width)
        ends = [[tensor[which] for tensor in images] for which in (slice(1), slice(-1, None))]
        alone = torch.cat([answers_for(x, self.network(x, *rows)) for x, *rows in ends]).nan_to_num()
        together, turned = (
            answers_for(x, self.network(x, *rows))[[0, -1]].nan_to_num()
            for x, *rows in (images, [tensor.flip(0) for tensor in images])
        )
        close = partial(torch.allclose, rtol=ROUNDING, atol=ROUNDING * float(alone.abs().max()))
        return not (close(together, alone) and close(turned.flip(0), alone))

    def _same_bits(self, expected: tuple[Tensor, ...], width: int) -> bool:
        """Return whether images get the expected bits at ``width``, at other places and in other company."""
        n = len(expected[0])
        kept = max(width // 2, 1) if width <= n else n
        if width <= n:
            moved = [(5 * place + 3) % width for place in range(width)]  # none stays where it is, widths being even
        else:
            moved = [width - 1 - place * (width // n) for place in range(n)]  # from the last one on, all over the batch
        some, others = list(range(kept)), list(range(n - kept, n))
        return self._as_expected(expected, some, moved[:kept], width) and self._as_expected(
            expected, others, moved[-kept:], width
        )

    def _as_expected(self, expected: tuple[Tensor, ...], which: list[int], places: list[int], width: int) -> bool:
        """Return whether some images get the expected bits at some places of a batch with others."""
        images, batch = self._batch(len(expected[0])), self._batch(width, shift=1)
        batch[0] = batch[0] / 2  # images that are not among the others
        for tensor, own in zip(batch, images, strict=True):
            tensor[places] = own[which]
        seen = self._look(*batch)
        return same_bits(tuple(s[places] for s in seen), tuple(e[which] for e in expected))

    def _batch(self, width: int, shift: int = 0) -> list[Tensor]:
        """Return ``width`` images unlike each other, and their rows."""
        every = (torch.arange(width) + shift).tolist()
        which = [number % len(self._example) for number in every]
        share = torch.tensor([0.5 + 0.5 / (1 + number) for number in every], device=self._example.device)
        images = self._example[which]
        return [torch.lerp(images.flip(3), images, share.view(-1, 1, 1, 1)), *(row[which] for row in self._rows)]

    def _look(self, x: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
        """Return the answers for a batch as it is, the gradient of a sum of them, and perhaps the answers without."""
        with torch.no_grad():
            again = (answers_for(x, self.network(x, *rows)),) if self.modes == "both" else ()
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            answers = answers_for(x, self.network(x, *rows))
            weights = torch.cos(torch.arange(answers.shape[1], device=x.device, dtype=answers.dtype))
            total = (answers * weights).sum()
            gradient = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
        return answers.detach(), torch.zeros_like(x) if gradient is None else gradient, *again

    @property
    def width(self) -> int:
        """Number of images to compute at once: the fastest, or fewer where memory is short."""
        return max(min(self.fastest, self.widest), 1)

    @cached_property
    def fastest(self) -> int:
        """Width at which an image takes the least time, forward and backward, by a short measurement on a CPU."""
        if self._example.device.type != "cpu":
            return max(self.reference, 1)
        best, before = max(self.reference, 1), float("inf")
        powers = (width for width in self.widths.ladder if best <= width <= self.widest and width & (width - 1) == 0)
        for width in filter(self.agrees, powers):
            times = 3 if before == float("inf") or before < 0.01 else 1
            seconds = if_it_fits(partial(self._timed, self._batch(width), times))
            if seconds is None or seconds / width > GAIN * before:
                break
            best, before = width, seconds / width
            if seconds > LONGEST:
                break
        return best

    def _timed(self, batch: list[Tensor], times: int) -> float:
        """Return the least of the seconds of so many looks."""
        seconds = []
        for _ in range(times):
            started = perf_counter()
            self._look(*batch)[0].sum().item()  # the number is waited for, on a GPU too
            seconds.append(perf_counter() - started)
        return min(seconds)


def if_it_fits(compute: Callable[[], T]) -> T | None:
    """Return what ``compute`` does; None where memory is too short for it, which is then given back."""
    try:
        return compute()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    give_back_memory()  # not while the error holds on to what was computed
    return None


def pad(tensor: Tensor, width: int) -> Tensor:
    """Return ``tensor`` with its last row repeated until it has ``width`` rows."""
    missing = width - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor
