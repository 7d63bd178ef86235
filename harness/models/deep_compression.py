"""Networks compressed by Deep Compression (Han et al. 2016, arXiv 1510.00149), as SqueezeNet was published.

A file begins with the number of stored weights of every layer (uint32). Then, for each layer, come 256 shared weights
(float32), the biases (float32), a code for each stored weight (uint8), which is its place among the shared ones, and
the numbers of weights skipped before each stored one (4 bits, the lower half of a byte first). A weight that is not
stored has code 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.models.checkpoint_files import BadCheckpoint

SHARED = 256
"""Number of weights that the connections of a convolution share."""


def decode(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict in a compressed file, for images whose channels are red, green and blue; Caffe's are BGR.

    Args:
        path: the file.
        network: network of convolutions in the order of the file, each with a bias.

    Raises:
        BadCheckpoint: the file has more or less than these convolutions need.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    content = path.read_bytes()
    place = 0

    def read(dtype: str, count: int) -> np.ndarray:
        nonlocal place
        start, place = place, place + count * np.dtype(dtype).itemsize
        if place > len(content):
            raise BadCheckpoint(f"is cut short: {len(content):,} bytes")
        return np.frombuffer(content[start:place], dtype)

    state = {}
    for (name, layer), stored in zip(layers.items(), read("<u4", len(layers)).tolist(), strict=True):
        shared, bias = read("<f4", SHARED), read("<f4", layer.out_channels)
        codes, pairs = read("u1", stored), read("u1", (stored + 1) // 2)
        skipped = np.stack([pairs & 15, pairs >> 4], axis=1).ravel()[:stored].astype("int64")
        dense = np.zeros(layer.weight.numel(), "u1")
        dense[np.cumsum(skipped + 1) - 1] = codes
        state[f"{name}.weight"] = torch.from_numpy(shared[dense]).view_as(layer.weight)
        state[f"{name}.bias"] = torch.from_numpy(bias.copy())
    if place != len(content):
        raise BadCheckpoint(f"has {len(content) - place:,} bytes behind its last convolution")
    first = f"{next(iter(layers))}.weight"
    return state | {first: state[first].flip(1)}
