"""Swin Transformers with ReLUs, as in the Curvature Tuning paper: builders for ``kind: checkpoint``."""

from __future__ import annotations

import timm
from timm.layers import Mlp
from torch import nn


def relu_swin_tiny() -> nn.Module:
    """Build timm's Swin-T (28 M parameters, 224×224 pixels, 1,000 classes), untrained, with ReLU for its 12 GELUs."""
    return _with_relu("swin_tiny_patch4_window7_224")


def relu_swin_small() -> nn.Module:
    """Build timm's Swin-S (50 M parameters, 224×224 pixels, 1,000 classes), untrained, with ReLU for its 24 GELUs."""
    return _with_relu("swin_small_patch4_window7_224")


def _with_relu(name: str) -> nn.Module:
    """Build a Swin Transformer of timm with ReLUs; its state dict keeps timm's keys, as activations have none."""
    network: nn.Module = timm.create_model(name)
    for module in network.modules():
        if isinstance(module, Mlp):
            module.act = nn.ReLU()
    return network
