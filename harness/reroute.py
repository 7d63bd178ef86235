"""Seeing every activation of a network: from Python, where it can be replaced, and below, where it can be counted.

A `TorchFunctionMode` sees a call however it is made (module, function, method, in place). It belongs to the thread that
entered it. Handlers run with torch functions disabled, so modes may be nested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from harness.activations import FUNCTIONS, IN_PLACE, OTHERS, PIECEWISE_AFFINE, Curve


class Reroute(TorchFunctionMode):
    """While it is entered, every piecewise-affine activation is computed with ``curve`` in place of ReLU.

    Args:
        curve: φ at one β and c.
        write_back: whether ``inplace=True`` really writes into the input. Nearly all networks use only what the
            call returns; a fresh tensor is then cheaper and kinder to autograd. The proof finds out which it is.

    Attributes:
        calls: how often each activation was called.
        detached: whether one was called where no gradient is recorded though its input wants one.
    """

    def __init__(self, curve: Curve, write_back: bool = False) -> None:
        super().__init__()
        self.curve = curve
        self.write_back = write_back
        self.calls: Counter[str] = Counter()
        self.detached = False

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in FUNCTIONS:
            return func(*args, **kwargs)
        name, smooth = FUNCTIONS[func]
        self.calls[name] += 1
        input = args[0] if args else kwargs["input"]
        self.detached |= input.requires_grad and not torch.is_grad_enabled()
        with torch._C.DisableTorchFunction():
            if func in IN_PLACE or (self.write_back and kwargs.get("inplace")):
                kwargs.pop("input", None)
                return input.copy_(smooth(self.curve, input.clone(), *args[1:], **kwargs))
            return smooth(self.curve, *args, **kwargs)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the activations that are computed below Python, forward and backward, by name of the operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
        if name in PIECEWISE_AFFINE:
            self.left[PIECEWISE_AFFINE[name]] += 1
        elif name in OTHERS:
            self.others[OTHERS[name]] += 1
        return func(*args, **(kwargs or {}))
