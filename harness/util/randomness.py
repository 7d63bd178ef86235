"""Torch's own generators, for code that draws from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int, like: Tensor | None = None) -> Iterator[None]:
    """Draw from a seed in the block, and leave the generators as they were.

    Args:
        seed: the seed.
        like: a tensor on the device that is drawn on besides the CPU. No other GPU is touched: to look at its generator
            would open a context on it, which takes half a gigabyte there, and fails where it is another process's own.
    """
    gpus = [like.device] if like is not None and like.is_cuda else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield
