"""A network's structure copied, its weights shared, so that parts can be exchanged in one and not in the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

from torch import nn

from harness.errors import ModelError


def twin(network: nn.Module, replacements: Mapping[type[nn.Module], Callable[[nn.Module], nn.Module]]) -> nn.Module:
    """A copy that shares every parameter and buffer, its modules of the given types exchanged.

    Args:
        network: is not changed.
        replacements: for each type (not its subclasses), what takes the place of a module.

    Raises:
        ModelError: the modules cannot be copied.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    try:
        copied = copy.deepcopy(network, shared)
    except RuntimeError as error:
        raise ModelError(f"its modules cannot be copied to be replaced ({error}); use sites: all") from error
    if type(copied) in replacements:
        return replacements[type(copied)](copied)
    for module in list(copied.modules()):
        for name, child in module._modules.items():  # named_children() passes over a module seen before
            if child is not None and type(child) in replacements:
                setattr(module, name, replacements[type(child)](child))
    return copied
