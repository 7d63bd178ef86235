"""A network's structure copied, its weights shared, so that parts can be exchanged in one and not in the other."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from harness.errors import ModelError


def copy_sharing_weights(network: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """A copy that shares every parameter and buffer, some of its modules exchanged.

    Args:
        network: is not changed.
        replacement: what takes the place of a module; None where it stays.

    Raises:
        ModelError: the modules cannot be copied.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    try:
        copied = copy.deepcopy(network, shared)
    except RuntimeError as error:
        raise ModelError(f"its modules cannot be copied to be replaced ({error}); use sites: all") from error
    if (other := replacement(copied)) is not None:
        return other
    for module in list(copied.modules()):
        for name, child in module._modules.items():  # named_children() passes over a module seen before
            if child is not None and (other := replacement(child)) is not None:
                setattr(module, name, other)
    return copied
