"""Swin Transformers with ReLUs, as Curvature Tuning scored them: builders for ``kind: checkpoint``."""

from __future__ import annotations

import timm
from timm.layers import Mlp
from torch import nn


def relu_swin_tiny() -> nn.Module:
    """Swin-T of timm (28 M parameters, 224×224 pixels, 1,000 classes), untrained, with 12 ReLUs for its GELUs."""
    return _with_relu("swin_tiny_patch4_window7_224")


def relu_swin_small() -> nn.Module:
    """Swin-S of timm (50 M parameters, 224×224 pixels, 1,000 classes), untrained, with 24 ReLUs for its GELUs."""
    return _with_relu("swin_small_patch4_window7_224")


def _with_relu(name: str) -> nn.Module:
    """The keys of its state dict stay timm's: an activation has none."""
    network: nn.Module = timm.create_model(name)
    for module in network.modules():
        if isinstance(module, Mlp):
            module.act = nn.ReLU()
    return network
