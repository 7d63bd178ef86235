"""The contract of a model: from the YAML to a network that can be steered and scored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from harness.api.part import Part
from harness.api.records import AS_STORED, Coverage, FamilyName, Preprocessing, Published, Sites, Steering

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from harness.api.dataset import Data, Dataset


class Model(Part):
    """A pretrained network as the YAML describes it."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Name on the leaderboard."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the modules by whose code the network is built; they and its own code are part of its identity."""
        return (type(self).__module__,)

    def preprocessing(self, *, offline: bool = False) -> Preprocessing:
        """Return how to resize and crop pictures of any size; ignored for datasets whose images have one size.

        Args:
            offline: whether to refuse every download.

        Raises:
            ModelError: the model is not known.
        """
        return AS_STORED

    def published(self, dataset: str, threat: str) -> Published | None:
        """Return the published accuracy; None if there is none.

        Args:
            dataset: kind of the dataset.
            threat: kind of the threat.
        """
        return None

    def class_names(self, *, offline: bool = False) -> Sequence[str]:
        """Return the name of each logit's class, by number; empty where they are not known. Images are matched by them.

        Args:
            offline: whether to refuse every download.
        """
        return ()

    @property
    def training(self) -> Dataset | None:
        """Images that a part of the model is fitted on, such as a probe; None if nothing is fitted."""
        return None

    @property
    def trained_how(self) -> str:
        """Training images and settings of the fit, for the leaderboard; empty if nothing is fitted."""
        return ""

    @property
    def adaptations(self) -> tuple[str, ...]:
        """Names of other ways to adapt the model, such as LoRA, to score beside the steerings."""
        return ()

    @abstractmethod
    def load(self, *, offline: bool = False) -> Scorable:
        """Return the network on the CPU, in eval mode, from images in [0, 1] to logits, normalisation included.

        Args:
            offline: whether to refuse every download.

        Raises:
            ModelError: the weights are missing, damaged, or of another architecture; the message says what to do.
        """


NO_NORMALISATION = (
    "protocol: paper attacks normalised images, but this model does not say how it normalises them; "
    "give mean and std (kind: checkpoint), or set protocol=pixel"
)
"""Message of a `Scorable.normalised_space` that refuses."""


class Scorable(Protocol):
    """A loaded model that can be steered and scored.

    Implemented by `harness.models.loaded.Loaded` and `harness.transfer.transferred.Transferred`.
    """

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights, and of the images that a part is fitted on."""

    @property
    def recipe(self) -> str:
        """Description of how a part is fitted, package versions included; empty if nothing is fitted."""

    @property
    def network(self) -> nn.Module:
        """Untouched network in eval mode, from images in [0, 1] (float32 [n, c, h, w]) to logits [n, classes]."""

    @property
    def body(self) -> nn.Module:
        """Module that holds the pretrained weights; move it to a device, and set its layout, before anything else."""

    @property
    def training(self) -> Data | None:
        """Images that a part is fitted on; None if nothing is fitted."""

    def steered(self, steering: Steering, example: Tensor | None = None) -> nn.Module:
        """Return the network to score: the untouched one for the baseline, otherwise one that shares its weights.

        Args:
            steering: a point of the grid, or another method of adapting the network.
            example: images that the network takes, [1, c, h, w], on which to prove that every activation is steered.
        """

    def compiled(self, network: nn.Module, compile: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """Compile a network that `steered` returned.

        Args:
            network: the network to score under some steering.
            compile: compiles a module. All β and c share one compilation of a steered network, so leave out any part
                that differs between steerings in another way, such as a head fitted for each of them.
        """

    def normalised_space(self) -> tuple[Scorable, Callable[[Tensor], Tensor]]:
        """Split the model for ``protocol: paper``: into a model of normalised images, and their normalisation.

        Raises:
            ModelError: the model does not say how its images are normalised (`NO_NORMALISATION`).
        """

    def coverage(self, sites: Sites, example: Tensor, family: FamilyName = "relu") -> Coverage:
        """Count the activations that the steering reaches while the network runs, and measure what they are given.

        Args:
            sites: calls of an activation to steer.
            example: images that the network takes, [n, c, h, w]; they are counted on the first, and measured on all.
            family: family of activations to steer.

        Raises:
            NothingToSteer: the network runs no activation of the family.
            IncompleteSteering: an activation is missed, and ``sites`` is "all".
        """

    def trainable_parameters(self, method: str = "") -> int:
        """Return the number of parameters fitted on the training images.

        Args:
            method: another way to adapt the model; empty for a steering.
        """

    def marks(self, method: str = "") -> set[str]:
        """Return the flags of a row of another way to adapt the model; see `harness.leaderboard.flags`.

        Args:
            method: another way to adapt the model; empty for a steering.
        """

    def fitted(self, steering: Steering) -> dict[str, str]:
        """Return ``weights_sha256`` of the network to score, fitted part included; empty if nothing is fitted."""

    def training_scores(self, steering: Steering) -> np.ndarray:
        """Return each training image's score by what was fitted without its fold, float32 [n]."""
