"""Interception of a network's activations: in Python, where they can be replaced, and below, where they are counted.

A `TorchFunctionMode` sees a call however it is made (module, function, method, in place), in the thread that entered
it. Steered versions run with torch functions disabled, so modes may be nested.
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
from harness.curvature.spellings import watched

IN_PLACE = frozenset(
    function for family in FAMILIES.values() for function in family.functions if function.__name__.endswith("_")
)
"""Functions that always write into their input."""


@dataclass
class CallCounts:
    """Counts of the calls that a `Reroute` intercepted.

    Args:
        calls: number of calls that were replaced, by activation.
        skipped: number of calls on the network's outputs, which were left alone, by activation.
        spelt: number of ReLUs that are spelt otherwise and were left alone, by spelling.
        detached: whether an activation was called where no gradient is recorded although its input requires one.
    """

    calls: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    spelt: Counter[str] = field(default_factory=Counter)
    detached: bool = False


class Reroute(TorchFunctionMode):
    """While entered, compute every activation of ``family`` with ``curve`` in place of its own.

    Args:
        curve: φ at one β and c.
        family: the activations to replace.
        skipped_output_shape: shape, without the batch, of the network's outputs: activations applied to tensors of it
            are not hidden ones and are left alone. None where no call is skipped.
        write_back: whether ``inplace=True`` writes into the input. Nearly all networks use only what the call returns;
            a fresh tensor is then cheaper and easier on autograd. The proof finds out which of the two a network needs.
        counts: counts to be updated; None while compiling, since a compiler cannot trace through the counting.
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
            if self.counts is None:
                return func(*args, **kwargs)
            result, spelling = watched(func, args, kwargs)
            self.counts.spelt.update([spelling] if spelling else [])
            return result
        name, steered_op = self.functions[func]
        input = args[0] if args else kwargs["input"]
        skipped = self.skipped_output_shape is not None and input.shape[1:] == self.skipped_output_shape
        if self.counts is not None:
            (self.counts.skipped if skipped else self.counts.calls)[name] += 1
            self.counts.detached |= not skipped and input.requires_grad and not torch.is_grad_enabled()
        if skipped:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            if func in IN_PLACE or (self.write_back and kwargs.get("inplace")):
                kwargs.pop("input", None)
                return input.copy_(steered_op(self.curve, input.clone(), *args[1:], **kwargs))
            return steered_op(self.curve, *args, **kwargs)


class ActivationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, count the activations that are computed below Python, in the forward and the backward pass.

    Args:
        family: the family whose activations are told from all others.

    Attributes:
        left: number of activations of the family that ran as they are, having not been replaced.
        others: number of other activations.
    """

    def __init__(self, family: Family) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.family = family
        self.left: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: the wrapper that keeps a compiler out of here would import that compiler, for seconds."""
        return False

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
