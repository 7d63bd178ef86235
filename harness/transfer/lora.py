"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank matrices beside the weights of layers, merged into them at the end.

What is scored is the merged network, so a layer takes part only where merging leaves the function as it is. Libraries
merge some layers into another network: convolutions that do not pad with zeros, layers that are called at several
places, share their weight, compute it in a hook, or hand it to a function. So it is tried, on a few training images.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from threading import RLock

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from harness.errors import ModelError
from harness.util.device_errors import raise_of_device
from harness.util.randomness import seeded

TOLERANCE = 1e-3
"""Largest change of an output by merging, as a share of the largest output: a hundred times what rounding causes."""


def layers(features: nn.Module) -> list[str]:
    """Return the names of all linear layers and convolutions."""
    return [name for name, module in features.named_modules() if isinstance(module, nn.Linear | _ConvNd)]


def candidates(features: nn.Module) -> list[str]:
    """Return the names of those that may take part.

    Grouped and transposed convolutions are left out, as peft cannot merge them, and so are subclasses, such as the
    linear layers of ``nn.MultiheadAttention``.
    """
    return [
        name
        for name, module in features.named_modules()
        if type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)
    ]


def mergeable(features: nn.Module, rank: int, x: Tensor) -> list[str]:
    """Return the names of those layers that take low-rank matrices of which merging leaves the function as it is.

    Args:
        features: module from images to features.
        rank: rank of the matrices.
        x: a few training images [n, c, h, w].

    Raises:
        ModelError: there is no such layer.
    """
    names = candidates(features)
    if not names:
        raise ModelError("LoRA needs linear layers or convolutions, and the backbone has none; leave it out")
    found = names if _merges(features, names, rank, x) else [n for n in names if _merges(features, [n], rank, x)]
    if not found:
        raise ModelError(
            f"LoRA cannot be merged into any of its {len(names)} linear layers and convolutions: the merged network "
            "answers otherwise, or peft refuses; leave it out"
        )
    return found


@torch.no_grad()
def _merges(features: nn.Module, names: Sequence[str], rank: int, x: Tensor) -> bool:
    """Return whether random matrices beside these layers give the same features before and after they are merged."""
    with seeded(0, x), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            adapted = with_lora(copy.deepcopy(features), names, rank, random=True)
            before = adapted(x)
            return same(before, merge_lora(adapted)(x))
        except ModelError:
            raise
        except Exception as error:  # whatever peft or a network raises: such a layer cannot take part
            raise_of_device(error)
            return False


def same(before: Tensor, after: Tensor) -> bool:
    """Return whether outputs agree within `TOLERANCE`."""
    return bool((after - before).abs().max() <= TOLERANCE * before.abs().max())


def with_lora(features: nn.Module, names: Sequence[str], rank: int, *, random: bool = False) -> nn.Module:
    """Add low-rank matrices, scaled by one, to some layers.

    Args:
        features: module from images to features; it is changed in place.
        names: names of the layers.
        rank: rank of the matrices.
        random: whether both matrices are random; otherwise one is zero, and the function stays the same.

    Raises:
        ModelError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelError(f"LoRA needs peft ({error}); pip install 'ct-harness[transfer]'") from error
    pattern = "|".join(map(re.escape, names))
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=f"^(?:{pattern})$", init_lora_weights=not random)
    result: nn.Module = get_peft_model(features, config)
    return result


def merge_lora(features: nn.Module) -> nn.Module:
    """Merge low-rank matrices, if there are any, into the weights."""
    merge = getattr(features, "merge_and_unload", None)
    if merge is None:
        return features
    from tqdm import tqdm

    tqdm.set_lock(RLock())  # peft draws a bar, whose own lock is a semaphore that a killed worker would leave behind
    merged: nn.Module = merge()
    return merged


def peft_version(method: str) -> str:
    """Return the version of peft for the methods that use it, otherwise an empty string."""
    return version("peft") if method.startswith("lora") else ""
