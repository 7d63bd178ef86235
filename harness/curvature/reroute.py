"""Seeing every activation of a network: from Python, where it can be replaced, and below, where it can be counted.

A `TorchFunctionMode` sees a call however it is made (module, function, method, in place). It belongs to the thread that
entered it. Handlers run with torch functions disabled, so modes may be nested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from harness.curvature.families import FAMILIES, Family
from harness.curvature.piecewise_affine import Curve

IN_PLACE = frozenset(
    function for family in FAMILIES.values() for function in family.functions if function.__name__.endswith("_")
)
"""Those that write into their input whatever they are told."""


@dataclass
class CallCounts:
    """What a rerouting met.

    Args:
        calls: how often each activation was called, and replaced.
        skipped: how often each was spared.
        detached: whether one was called where no gradient is recorded though its input wants one.
    """

    calls: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    detached: bool = False


class Reroute(TorchFunctionMode):
    """While it is entered, every activation of ``family`` is computed with ``curve`` in place of its own.

    Args:
        curve: φ at one β and c.
        family: which activations.
        skipped_output_shape: shape, without the batch, of inputs that are the network's outputs and not hidden: calls
            on them are left alone. None where no call is skipped.
        write_back: whether ``inplace=True`` really writes into the input. Nearly all networks use only what the
            call returns; a fresh tensor is then cheaper and kinder to autograd. The proof finds out which it is.
        counts: filled in where there is one; a compiler cannot see through the counting.
    """

    def __init__(
        self,
        curve: Curve,
        family: Family = FAMILIES["relu"],
        skipped_output_shape: torch.Size | None = None,
        write_back: bool = False,
        counts: CallCounts | None = None,
    ) -> None:
        super().__init__()
        self.curve = curve
        self.functions = family.functions
        self.skipped_output_shape = skipped_output_shape
        self.write_back = write_back
        self.counts = counts

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self.functions:
            return func(*args, **kwargs)
        name, steered_op = self.functions[func]
        input = args[0] if args else kwargs["input"]
        skipped_output_shape = self.skipped_output_shape is not None and input.shape[1:] == self.skipped_output_shape
        if self.counts is not None:
            (self.counts.skipped if skipped_output_shape else self.counts.calls)[name] += 1
            self.counts.detached |= not skipped_output_shape and input.requires_grad and not torch.is_grad_enabled()
        if skipped_output_shape:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            if func in IN_PLACE or (self.write_back and kwargs.get("inplace")):
                kwargs.pop("input", None)
                return input.copy_(steered_op(self.curve, input.clone(), *args[1:], **kwargs))
            return steered_op(self.curve, *args, **kwargs)


class ActivationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the activations that are computed below Python, forward and backward: of a family, and any others."""

    def __init__(self, family: Family) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.family = family
        self.left: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in self.family.operations:
            self.left[self.family.operations[name]] += 1
        elif name in self.family.others:
            self.others[self.family.others[name]] += 1
        return func(*args, **(kwargs or {}))
