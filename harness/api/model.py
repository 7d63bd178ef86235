"""The contract of a model: from the YAML to a network that can be steered and scored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from harness.api.part import Part
from harness.api.records import AS_STORED, Coverage, FamilyName, Preprocessing, Published, Sites, Steering

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from harness.api.dataset import Data, Dataset


class Model(Part):
    """A pretrained classifier."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Its name on the leaderboard."""

    def preprocessing(self, *, offline: bool = False) -> Preprocessing:
        """What it wants done with pictures of any size; of no account where images have one size.

        Args:
            offline: refuse to download anything.

        Raises:
            ModelError: the model is not known.
        """
        return AS_STORED

    def published(self, dataset: str, threat: str) -> Published | None:
        """What others have measured of it on ``dataset`` under ``threat`` (their kinds); None if nobody has."""
        return None

    @property
    def training(self) -> Dataset | None:
        """The images that a part of it is fitted on; None where nothing is."""
        return None

    @property
    def trained_how(self) -> str:
        """The images that it is fitted on and how, on the leaderboard; empty where nothing is."""
        return ""

    @property
    def adaptations(self) -> tuple[str, ...]:
        """What to score beside the steerings: other ways to adapt it, each by its name."""
        return ()

    @abstractmethod
    def load(self, *, offline: bool = False) -> Scorable:
        """The network on the CPU, in eval mode, from images in [0, 1] to logits, its normalisation inside.

        Args:
            offline: refuse to download anything.

        Raises:
            ModelError: the weights are not there, damaged, or of another architecture; says what to do.
        """


NO_NORMALISATION = (
    "protocol: paper attacks normalised images, but this model does not say what its images are normalised by; "
    "give mean and std (kind: checkpoint), or set protocol=pixel"
)
"""Why `Scorable.normalised_space` may refuse."""


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

    def compiled(self, network: nn.Module, compile: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """Compile a network that `steered` returned.

        Args:
            network: the network to score under some steering.
            compile: compiles a module. Where it is a steered network, all β and c share one compilation; so a part that
                differs between steerings in more than that (a head fitted for each of them) is better left out.
        """

    def normalised_space(self) -> tuple[Scorable, Callable[[Tensor], Tensor]]:
        """Split the model for ``protocol: paper``: the model of normalised images, and what normalises them.

        Raises:
            ModelError: the model does not say how its images are normalised (`NO_NORMALISATION`).
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

    def training_scores(self, steering: Steering) -> np.ndarray:
        """For each training image how good the answer is of what was fitted without it, float32 [n]."""
