"""Features of a network: the input of its classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from harness.curvature.shared_copy import copy_sharing_weights
from harness.errors import ModelError
from harness.util.device_errors import raise_of_device
from harness.util.text import did_you_mean

REMEDY = "name the module that is the classifier (classifier: head.fc), or choose another backbone"


class Tap(nn.Module):
    """Stand-in for a classifier: returns its input unchanged, and keeps it until it is taken."""

    captured: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input``."""
        self.captured = input
        return input

    def take(self) -> Tensor:
        """Return the last input and forget it."""
        assert self.captured is not None
        captured, self.captured = self.captured, None
        return captured


class FeatureExtractor(nn.Module):
    """A network without its classifier: images [n, c, h, w] to the classifier's input [n, d].

    Operations that the network runs after its classifier still run, without effect.

    Args:
        network: network from images to logits; its weights are shared.
        classifier: full name of its last layer.
    """

    yields_hidden = True
    """The outputs are hidden units of the whole network, so an activation that yields them is steered."""

    def __init__(self, network: nn.Module, classifier: str) -> None:
        super().__init__()
        self.classifier = classifier
        self.network = copy_sharing_weights(network, lambda module: None)
        self.network.set_submodule(classifier, Tap().train(network.training))
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of images in [0, 1]."""
        self.network(x)
        tap = self.network.get_submodule(self.classifier)
        assert isinstance(tap, Tap)
        return pooled(tap.take())


def pooled(features: Tensor) -> Tensor:
    """Average over all positions, as the input of a 1×1 convolution has them: [n, d, h, w] to [n, d]; [n, d] stays."""
    return features.mean((2, 3)) if features.ndim == 4 else features


@torch.no_grad()
def without_classifier(network: nn.Module, example: Tensor, classifier: str | None = None) -> FeatureExtractor:
    """Cut a network off before its classifier: the last layer to run with as many outputs as there are logits.

    Args:
        network: network in eval mode, from images to logits.
        example: one image that the network takes, [1, c, h, w].
        classifier: name of the classifier, if it is not to be searched for; a wrapper's ``network.`` may be left out.

    Raises:
        ModelError: there is no such layer, or something comes after it; says what to do.
    """
    calls, logits = _linear_calls(network, example)
    name = _full_name(network, classifier) if classifier else _last_layer(calls, logits)
    if name not in calls:
        raise ModelError(f"classifier {classifier!r} is not called, or is no linear layer or convolution; {REMEDY}")
    extractor = FeatureExtractor(network, name)
    try:
        found = pooled(extractor.network(example))
        extractor(example)
    except Exception as error:  # whatever a network raises without its last layer
        raise_of_device(error)
        raise ModelError(f"its features cannot be taken before {name!r} ({error!r}); {REMEDY}") from error
    expected = pooled(calls[name][0])
    if not expected.isfinite().all():
        raise ModelError(
            f"its features before {name!r} are NaN or infinite on a training image; check its weights and its "
            "normalisation (mean, std)"
        )
    if found.ndim != 2 or not torch.equal(found, expected):
        raise ModelError(
            f"its classifier seems to be {name!r}, but something comes after it: without it the network yields "
            f"{list(found.shape)} instead of its input {list(expected.shape)}; {REMEDY}"
        )
    return extractor


LayerCall = tuple[Tensor, Tensor]
"""Input and output of one call of a layer."""


def _linear_calls(network: nn.Module, example: Tensor) -> tuple[dict[str, LayerCall], Tensor]:
    """Return the last call of each linear layer and convolution, in the order of the calls, and the logits."""
    calls: dict[str, LayerCall] = {}

    def recorder(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            calls.pop(name, None)  # the last call counts, in the order too
            calls[name] = args[0] if args else kwargs["input"], output

        return hook

    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    hooks = [module.register_forward_hook(recorder(name), with_kwargs=True) for name, module in layers.items()]
    try:
        return calls, network(example)
    finally:
        for hook in hooks:
            hook.remove()


def _last_layer(calls: dict[str, LayerCall], logits: Tensor) -> str:
    """Return the name of the last layer to run with as many outputs as there are logits."""
    classes = logits.shape[-1]
    found = [name for name, (_, output) in calls.items() if pooled(output).shape[1:] == (classes,)]
    if not found:
        raise ModelError(f"none of its linear layers and convolutions yields its {classes} logits; {REMEDY}")
    return found[-1]


def _full_name(network: nn.Module, classifier: str) -> str:
    """Return the full name of a module that is named with or without the prefix of a wrapper."""
    names = [str(name) for name, _ in network.named_modules() if name]
    exact = [name for name in names if name == classifier]
    found = exact or [name for name in names if name.endswith(f".{classifier}")]
    if len(found) != 1:
        hint = did_you_mean(classifier, names) if not found else f": it may be {' or '.join(found)}"
        raise ModelError(f"classifier {classifier!r}: expected the name of one module{hint}; {REMEDY}")
    return found[0]
