"""A pretend CUDA graph: the operations of a piece of work are noted and repeated on the same memory, without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PretendGraphs:
    """A `harness.engine.step_graph.Recorder` on the CPU.

    Unlike a CUDA graph, recording runs the work too. ``recorded`` and ``repeated`` count.
    """

    def __init__(self) -> None:
        self.usable = True
        self.recorded = self.repeated = 0

    def run(self, work: Callable[[], None]) -> None:
        """Run work as it is."""
        work()

    def rehearse(self, work: Callable[[], None]) -> None:
        """Run work as it is."""
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what repeats the operations of the work."""
        self.recorded += 1
        with _Noting() as noted:
            work()

        @torch.no_grad()
        def repeat() -> None:
            self.repeated += 1
            for operation, args, kwargs, result in noted.operations:
                again = operation(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and _address(old) != _address(new):
                        old.copy_(new)

        return repeat


def _address(tensor: Tensor) -> int:
    """Return where a tensor's memory begins; of one on the pretend GPU, where it really is."""
    here: Tensor = getattr(tensor, "here", tensor)
    return here.data_ptr()


class _Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result
