"""A model in memory: the network, the hash of its weights, and the network to score for each steering."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn, uint8

from harness.api.records import Coverage, FamilyName, Sites, Steering
from harness.curvature.steering import Steered, steer

if TYPE_CHECKING:
    import numpy as np

    from harness.engine.images import Data


def sha256_of_weights(network: nn.Module) -> str:
    """SHA-256 of every parameter and buffer: name, dtype, shape and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if isinstance(tensor, Tensor):
            value = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.flatten().view(dtype=uint8).numpy().tobytes())
    return digest.hexdigest()


class Scorable(Protocol):
    """What `Model.load` returns: `Loaded`, or `harness.transfer.transferred.Transferred`."""

    @property
    def sha256(self) -> str:
        """Names what was given: the weights, and the images that a part is fitted on."""

    @property
    def recipe(self) -> str:
        """Names how a part of it is fitted, and with which versions; empty where nothing is."""

    @property
    def network(self) -> nn.Module:
        """The untouched network, in eval mode: images in [0, 1] (float32 [n, c, h, w]) to logits [n, classes]."""

    @property
    def body(self) -> nn.Module:
        """What holds the given weights: move it to a device, and lay it out, before anything else is asked for."""

    @property
    def training(self) -> Data | None:
        """The images that a part of it is fitted on; None where nothing is."""

    def steered(self, steering: Steering, example: Tensor | None = None) -> nn.Module:
        """The network to score: the untouched one at the baseline, otherwise one that shares its weights.

        Args:
            steering: of the family's curve, or another method of adapting the network.
            example: images that it takes [1, c, h, w], to prove on that nothing was missed.
        """

    def coverage(self, sites: Sites, example: Tensor, family: FamilyName = "relu") -> Coverage:
        """What steering this model reaches, counted while it runs on ``example`` [1, c, h, w].

        Raises:
            NothingToSteer: nothing at all.
            IncompleteSteering: not everything, where ``sites`` is "all".
        """

    def trainable_parameters(self, method: str = "") -> int:
        """How many numbers are fitted on the training images, by the method, or for each steering."""

    def fitted(self, steering: Steering) -> dict[str, str]:
        """``weights_sha256`` of the network to score, what was fitted included; empty where nothing is."""

    def rehearsed(self, steering: Steering) -> np.ndarray:
        """For each training image how good the answer is of what was fitted without it, float32 [n]."""


@dataclass(frozen=True)
class Loaded:
    """A network that is scored as it came.

    Args:
        network: in eval mode, from images in [0, 1] (float32 [n, c, h, w]) to logits [n, classes], with its
            normalisation inside: a threat lives in pixel space.
        sha256: names the weights.
    """

    network: nn.Module
    sha256: str

    @property
    def recipe(self) -> str:
        """Nothing is fitted."""
        return ""

    @property
    def body(self) -> nn.Module:
        """The network."""
        return self.network

    @property
    def training(self) -> None:
        """Nothing is fitted."""
        return

    def steered(self, steering: Steering, example: Tensor | None = None) -> nn.Module:
        """See `Scorable.steered`."""
        return self.network if steering.is_baseline else bent(self.network, steering, example)

    def coverage(self, sites: Sites, example: Tensor, family: FamilyName = "relu") -> Coverage:
        """See `Scorable.coverage`."""
        return reach(self.network, sites, example, family)

    def trainable_parameters(self, method: str = "") -> int:
        """None."""
        return 0

    def fitted(self, steering: Steering) -> dict[str, str]:
        """Nothing is."""
        return {}

    def rehearsed(self, steering: Steering) -> np.ndarray:
        """Never asked for, since there are no training images."""
        raise NotImplementedError


def bent(network: nn.Module, steering: Steering, example: Tensor | None = None) -> Steered:
    """The network steered, its activations exchanged where that reaches all; see `harness.curvature.steering.steer`.

    Args:
        network: which the harness owns.
        steering: not the baseline.
        example: images that it takes.
    """
    steered = steer(network, steering.beta, steering.c, steering.sites, example, steering.family)
    if example is not None:
        steered.exchange(example)
    return steered


def reach(network: nn.Module, sites: Sites, example: Tensor, family: FamilyName) -> Coverage:
    """What steering ``network`` reaches; see `Scorable.coverage`."""
    coverage = bent(network, Steering(0.75, 1.0, sites, family), example).coverage
    assert coverage is not None
    return coverage
