"""A loaded model: its network, the hash of its weights, and the network to score at each steering."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from harness.api.model import NO_NORMALISATION
from harness.api.records import Coverage, FamilyName, Sites, Steering
from harness.curvature.steering import coverage_of, steered_network
from harness.errors import ModelError
from harness.models.normalisation import Normalised

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Loaded:
    """A pretrained network, of which no part is fitted by the harness.

    Args:
        network: classifier in eval mode from images in [0, 1] (float32 [n, c, h, w]) to logits [n, classes], with its
            normalisation inside, since threats are defined in pixel space.
        sha256: hash of the weights.
    """

    network: nn.Module
    sha256: str

    @property
    def recipe(self) -> str:
        """The empty string, as nothing is fitted."""
        return ""

    @property
    def body(self) -> nn.Module:
        """The network itself, which holds all weights."""
        return self.network

    @property
    def training(self) -> None:
        """None, as nothing is fitted."""
        return

    def steered(self, steering: Steering, example: Tensor | None = None) -> nn.Module:
        """See `Scorable.steered`."""
        return self.network if steering.is_baseline else steered_network(self.network, steering, example)

    def compiled(self, network: nn.Module, compile: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """See `Scorable.compiled`; the whole network is compiled."""
        return compile(network)

    def normalised_space(self) -> tuple[Loaded, Callable[[Tensor], Tensor]]:
        """See `Scorable.normalised_space`; defined for networks wrapped in `Normalised`."""
        if not isinstance(self.network, Normalised):
            raise ModelError(NO_NORMALISATION)
        return replace(self, network=self.network.network), self.network.normalise

    def coverage(self, sites: Sites, example: Tensor, family: FamilyName = "relu") -> Coverage:
        """See `Scorable.coverage`."""
        return coverage_of(self.network, sites, example, family)

    def trainable_parameters(self, method: str = "") -> int:
        """Return 0, as nothing is fitted."""
        return 0

    def marks(self, method: str = "") -> set[str]:
        """Return no flags, as there are no other methods."""
        return set()

    def fitted(self, steering: Steering) -> dict[str, str]:
        """Return an empty mapping, as nothing is fitted."""
        return {}

    def training_scores(self, steering: Steering) -> np.ndarray:
        """Raise NotImplementedError, as there are no training images; the harness never calls it."""
        raise NotImplementedError
