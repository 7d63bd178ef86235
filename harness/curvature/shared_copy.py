"""Copies of a network that share its weights, so that modules can be replaced in the copy alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from harness.errors import ModelError
from harness.util.device_errors import raise_of_device


def copy_sharing_weights(network: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Copy a network, sharing every parameter and buffer, and replace some of the copy's modules.

    Args:
        network: any module; it is not changed.
        replacement: maps a module to the one that takes its place, or to None where it stays.

    Returns:
        The copy; where the network itself is replaced, its replacement.

    Raises:
        ModelError: the modules cannot be copied.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    try:
        copied = copy.deepcopy(network, shared)
    except RuntimeError as error:
        raise_of_device(error)
        raise ModelError(f"its modules cannot be copied to be replaced ({error}); use sites: all") from error
    if (other := replacement(copied)) is not None:
        return other
    for module in list(copied.modules()):
        for name, child in module._modules.items():  # named_children() passes over a module seen before
            if child is not None and (other := replacement(child)) is not None:
                setattr(module, name, other)
    return copied
