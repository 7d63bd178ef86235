"""Bytes that a network keeps of an image for the backward pass: what limits a batch, and a measure of its work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def kept_bytes(network: nn.Module, example: Tensor, *rows: Tensor) -> int:
    """Return the bytes that autograd keeps of one image, at least 1: the same on every run, unlike a time.

    Args:
        network: network from images, and any tensors with a row for each image, to answers.
        example: images that it takes, [n, c, h, w].
        rows: the other tensors for these images, [n, …] each.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def give(tensor: Any) -> Any:
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, give):
        network(example.detach().clone().requires_grad_(), *(row.clone() for row in rows))
    return max(sum(kept.values()) // len(example), 1)
