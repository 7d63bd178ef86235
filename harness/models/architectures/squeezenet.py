"""SqueezeNet 1.0 as its authors released it for Caffe (Iandola et al. 2016, arXiv 1602.07360)."""

from __future__ import annotations

from torchvision.models import SqueezeNet, squeezenet1_0


def caffe_squeezenet() -> SqueezeNet:
    """Build torchvision's SqueezeNet 1.0, untrained, with a padding of 1 around the input of the last convolution.

    It takes images [n, 3, 227, 227] in 0 … 255 less their mean. All 26 ReLUs are modules.
    """
    network = squeezenet1_0(weights=None)
    network.classifier[1].padding = (1, 1)
    return network
