"""A pretend GPU: tensors that say ``device=meta`` and hold data of the CPU. It counts what would make the host wait.

    gpu = PretendGpu()
    with gpu:
        network, x = gpu.module(network), gpu.tensor(x)
        ...
    assert not gpu.waits and not gpu.strays

A tensor made with ``device="meta"`` while it is on is one of its own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

UNCOUNTED = ("_unsafe_view", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
INDEXED = ("index", "index_put", "index_put_")
SCALARS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero")


class There(Tensor):
    """A tensor on the pretend GPU, around one on the CPU."""

    here: Tensor
    gpu: PretendGpu

    @staticmethod
    def __new__(cls, here: Tensor, gpu: PretendGpu) -> There:
        made: There = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device("meta"),
        )
        made.here, made.gpu = here, gpu
        return made

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        gpu = next(leaf.gpu for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, There))
        return gpu.__torch_dispatch__(func, types, args, kwargs)


class PretendGpu(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs what is asked of the pretend GPU on the CPU, and counts.

    ``kernels``: operations that compute something, by name; views and fresh memory cost next to nothing. ``waits``:
    those for which the host would wait, or copy. ``strays``: those that mix its tensors with the CPU's.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.strays: Counter[str] = Counter()

    def tensor(self, here: Tensor) -> Tensor:
        """Return ``here``, as if on the GPU."""
        return There(here, self)

    def module(self, network: nn.Module) -> nn.Module:
        """Move a network to the GPU, in place; its parameters need no gradients there."""
        for module in network.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(self.tensor(parameter.data), requires_grad=False)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = self.tensor(buffer)
        return network

    def forget(self) -> None:
        """Begin to count anew."""
        for counted in (self.kernels, self.waits, self.strays):
            counted.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [leaf for leaf in given if isinstance(leaf, There)]
        device = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if device != "meta" and not there:
            return func(*args, **kwargs)
        plain_args, plain = tree_map(_here, args), tree_map(_here, kwargs)
        if device == "meta":
            plain["device"] = torch.device("cpu")
        self.kernels[name] += name not in UNCOUNTED and not _views(func)
        self._count(name, args, given, there, device)
        if name == "copy_" and not isinstance(args[0], There):
            func(*plain_args, **plain)
            return args[0]
        made = tree_map(self._there, func(*plain_args, **plain))
        if device == "cpu" or not there:
            return tree_map(_here, made) if device == "cpu" else made
        return return_and_correct_aliasing(func, args, kwargs, made)  # type: ignore[no-untyped-call]

    def _there(self, value: Any) -> Any:
        return self.tensor(value) if isinstance(value, Tensor) and not isinstance(value, There) else value

    def _count(self, name: str, args: Any, given: list[Tensor], there: list[There], device: str | None) -> None:
        if name in SCALARS or device == "cpu" or (device == "meta" and given and not there):
            self.waits[name] += 1
        elif name == "copy_":
            self.waits["copy_"] += len(there) < 2
        elif name in INDEXED:
            indices = [index for index in args[1] if index is not None]
            self.waits["an index from the host"] += any(not isinstance(index, There) for index in indices)
            self.waits["a mask as an index"] += any(index.dtype == torch.bool for index in indices)
        else:
            self.strays[name] += any(tensor.ndim > 0 and not isinstance(tensor, There) for tensor in given)
        self.waits, self.strays = +self.waits, +self.strays


def _views(func: Any) -> bool:
    """Return whether an operation only looks at its argument in another way."""
    aliases = [returned.alias_info for returned in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value
