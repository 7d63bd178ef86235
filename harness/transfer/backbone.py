"""Where does a network's classifier begin? Its features are what goes into that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from harness.curvature.shared_copy import copy_sharing_weights
from harness.errors import ModelError
from harness.util.text import did_you_mean

BY_HAND = "name the module that is the classifier (classifier: head.fc), or choose another backbone"


class Tap(nn.Module):
    """In a classifier's place: passes on what it is given, and keeps it until it is taken."""

    seen: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """What it was given."""
        self.seen = input
        return input

    def take(self) -> Tensor:
        """What it was last given; once."""
        assert self.seen is not None
        seen, self.seen = self.seen, None
        return seen


class Features(nn.Module):
    """A network without its classifier: images [n, c, h, w] to what that would be given, [n, d].

    What the network does after its classifier it still does, to no effect.

    Args:
        network: from images to logits; its weights are shared.
        classifier: the name of its last layer.
    """

    yields_hidden = True
    """What comes out is hidden in the whole network: an activation there is to be steered."""

    def __init__(self, network: nn.Module, classifier: str) -> None:
        super().__init__()
        self.classifier = classifier
        self.network = copy_sharing_weights(network, lambda module: None)
        self.network.set_submodule(classifier, Tap().train(network.training))
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        """The features of images in [0, 1]."""
        self.network(x)
        tap = self.network.get_submodule(self.classifier)
        assert isinstance(tap, Tap)
        return pooled(tap.take())


def pooled(features: Tensor) -> Tensor:
    """Where the classifier is a 1×1 convolution, its features' mean over all places: [n, d, h, w] to [n, d]."""
    return features.mean((2, 3)) if features.ndim == 4 else features


@torch.no_grad()
def without_classifier(network: nn.Module, example: Tensor, classifier: str | None = None) -> Features:
    """The network up to its classifier: the last layer that it runs with as many outputs as there are logits.

    Args:
        network: in eval mode, from images to logits.
        example: an image that it takes, [1, c, h, w].
        classifier: the name of that layer, where it is not to be looked for; a wrapper's ``network.`` may be left out.

    Raises:
        ModelError: there is none, or something comes after it; says what to do.
    """
    calls, logits = _linear_calls(network, example)
    name = _named(network, classifier) if classifier else _last(calls, logits)
    if name not in calls:
        raise ModelError(f"classifier {classifier!r}: it is not called, or no linear layer or convolution; {BY_HAND}")
    features = Features(network, name)
    try:
        found = pooled(features.network(example))
        features(example)
    except Exception as error:  # whatever a network raises without its last layer
        raise ModelError(f"its features cannot be taken before {name!r} ({error!r}); {BY_HAND}") from error
    expected = pooled(calls[name][0])
    if found.ndim != 2 or not torch.equal(found, expected):
        raise ModelError(
            f"its classifier seems to be {name!r}, but something comes after it: without it the network yields "
            f"{list(found.shape)} and not what goes into it {list(expected.shape)}; {BY_HAND}"
        )
    return features


LayerCall = tuple[Tensor, Tensor]
"""What went in, and what came out."""


def _linear_calls(network: nn.Module, example: Tensor) -> tuple[dict[str, LayerCall], Tensor]:
    """The last call of every linear layer and convolution, in the order of the calls; and the logits."""
    calls: dict[str, LayerCall] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor], result: Tensor) -> None:
            calls.pop(name, None)  # the last call counts, also in the order
            calls[name] = given[0] if given else named["input"], result

        return hook

    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    hooks = [module.register_forward_hook(note(name), with_kwargs=True) for name, module in layers.items()]
    try:
        return calls, network(example)
    finally:
        for hook in hooks:
            hook.remove()


def _last(calls: dict[str, LayerCall], logits: Tensor) -> str:
    classes = logits.shape[-1]
    found = [name for name, (_, result) in calls.items() if pooled(result).shape[1:] == (classes,)]
    if not found:
        raise ModelError(f"no linear layer or convolution of it yields its {classes} logits; {BY_HAND}")
    return found[-1]


def _named(network: nn.Module, classifier: str) -> str:
    """The full name of the module that is meant."""
    names = [str(name) for name, _ in network.named_modules() if name]
    exact = [name for name in names if name == classifier]
    found = exact or [name for name in names if name.endswith(f".{classifier}")]
    if len(found) != 1:
        hint = did_you_mean(classifier, names) if not found else f": it may be {' or '.join(found)}"
        raise ModelError(f"classifier {classifier!r}: expected the name of one module{hint}; {BY_HAND}")
    return found[0]
