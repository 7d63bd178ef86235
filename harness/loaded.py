"""A model in memory: the network, the hash of its weights, and the network to score for each steering."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor, nn, uint8

from harness.steering import Steered, steer
from harness.types import Coverage, FamilyName, Sites, Steering


def sha256_of_weights(network: nn.Module) -> str:
    """SHA-256 of every parameter and buffer: name, dtype, shape and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if isinstance(tensor, Tensor):
            value = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.flatten().view(dtype=uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Loaded:
    """What `Model.load` returns.

    Args:
        network: in eval mode, from images in [0, 1] (float32 [n, c, h, w]) to logits [n, classes], with its
            normalisation inside: a threat lives in pixel space.
        sha256: names the weights.
    """

    network: nn.Module
    sha256: str

    def steered(self, steering: Steering, example: Tensor | None = None) -> nn.Module:
        """The network to score: the untouched one at β = 1, otherwise one that shares its weights.

        A model that must do more than reroute activations (fit a probe, say) overrides this.
        """
        if steering.is_baseline:
            return self.network
        beta, c, sites, family, _ = steering
        steered = steer(self.network, beta, c, sites, example, family)
        if example is not None:
            steered.exchange(example)
        return steered

    def coverage(self, sites: Sites, example: Tensor, family: FamilyName = "relu") -> Coverage:
        """What steering this model reaches, counted while it runs on ``example`` [1, c, h, w].

        Raises:
            NothingToSteer: nothing at all.
            IncompleteSteering: not everything, where ``sites`` is "all".
        """
        steered = self.steered(Steering(0.75, 1.0, sites, family), example)
        assert isinstance(steered, Steered)
        assert steered.coverage is not None
        return steered.coverage
