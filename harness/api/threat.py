"""The contract of a threat: what may be done to an image, by which stages, and at what price."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.api.part import Part

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api.records import Batch

SLACK = 1e-4
"""The share of ε by which float32 rounding may carry an image out of the ball."""
SLACK_BOX = 1e-6
"""In pixels, for the box [0, 1] and, on top of `SLACK`, for the ball."""


@dataclass(frozen=True)
class Passes:
    """Passes of one image through the network that a stage needs at most.

    Args:
        forwards: forward passes.
        gradients: forward passes with a backward pass.
        own_steps: steps of the stage's work beside the network; see `Threat.own_work`.
    """

    forwards: int = 0
    gradients: int = 0
    own_steps: int = 0


class Threat(Part):
    """An ordered list of stages and how their outcomes make one number.

    A stage proposes images; it is the harness that judges them. With ``reduction`` "worst" an image is robust when
    it survives the clean stage and every stage; with "mean" its score is the share of the stages that it survives.
    """

    reduction: ClassVar[Literal["worst", "mean"]] = "worst"

    @classmethod
    def defaults(cls, dataset: str) -> dict[str, Any]:
        """Keys that a benchmark may leave out on ``dataset`` (its kind), and what they then are."""
        return {}

    @property
    def standard(self) -> bool:
        """Whether this, ε aside, is what the published boards measure: a result may then stand beside theirs."""
        return False

    @property
    @abstractmethod
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, in order, without the clean stage, which every threat has."""

    @property
    def attacks(self) -> tuple[str, ...]:
        """The stages of an adversary; a "mean" threat has none."""
        return self.stages if self.reduction == "worst" else ()

    def prepare(self, batch: Batch | None, *, offline: bool = False) -> None:
        """Have ready what the stages need, and refuse images they cannot work on; called before any cell runs.

        Args:
            batch: a few of the images, as a model sees them; None (from ``doctor``) where there are none to look at.
            offline: refuse to download anything.

        Raises:
            HarnessError: something is missing, damaged, or does not go with the images; says what to do.
        """

    @abstractmethod
    def perturb(self, stage: str, network: nn.Module, batch: Batch, seed: int) -> Tensor:
        """What ``stage`` makes of the images: [n, c, h, w] in [0, 1], in the same order.

        For "worst" the batch holds the images that still stand. To raise a flag of the row,
        ``warnings.warn(Flag("name", "why"))``.

        Args:
            stage: one of `stages`.
            network: images in [0, 1] to logits, in eval mode.
            batch: images that the network classifies correctly (with "mean": all).
            seed: seeds all randomness; the same seed must give the same images.
        """

    def check(self, x: Tensor, perturbed: Tensor) -> None:
        """Refuse images that this threat does not allow; called on every output of `perturb`.

        That they are as many, finite and in [0, 1] has been checked before.

        Args:
            x: the clean images [n, c, h, w].
            perturbed: what the stage made of them.

        Raises:
            InvalidAdversary: one of them is outside of what the threat allows.
        """

    def passes(self, stage: str, classes: int) -> Passes | None:
        """Return what ``stage`` needs at most for one image that it does not fool; None where that is not known.

        ``ct-harness doctor`` estimates time from it. A "mean" stage needs the forward pass that judges its image; the
        making of that image is timed.

        Args:
            stage: one of `stages`.
            classes: number of logits.
        """
        return Passes(forwards=1) if self.reduction == "mean" else None

    def own_work(self, x: Tensor) -> None:
        """Do one step of the work that the attack does beside the network, for ``ct-harness doctor`` to time.

        Args:
            x: images [n, c, h, w] in [0, 1].
        """

    def smoke_test(self, network: nn.Module, batch: Batch) -> tuple[str, Tensor]:
        """Try the threat on a few images in seconds, as ``ct-harness doctor`` does.

        Args:
            network: images in [0, 1] to logits, in eval mode.
            batch: at most a few images that the network classifies correctly (with "mean": any).

        Returns:
            The stage that was tried, and the images that it made [n, c, h, w]; the harness checks them.

        Raises:
            ModelError: the network cannot be attacked; says why.
        """
        stage = self.stages[0]
        return stage, self.perturb(stage, network, batch, seed=0).detach()

    def inspect(self, network: nn.Module, batch: Batch) -> None:
        """Look at the network on clean images for what would mislead an attack; warn with `Flag`."""

    def summary_columns(self, accuracy: Mapping[str, float]) -> dict[str, float]:
        """More columns of a row, from the share of the images that survive each stage; empty where there are none.

        Args:
            accuracy: by stage, in [0, 1]; stages may be missing.
        """
        return {}

    def columns(self) -> dict[str, str]:
        """The threat in the leaderboard: ``threat``, ``eps``, ``attack``; empty where it has no such thing."""
        return {"threat": self.kind, "eps": "", "attack": ""}


class Flag(UserWarning):
    """A warning that becomes a flag of the row.

    Args:
        name: the flag, one lower-case word.
        why: what was seen.
    """

    def __init__(self, name: str, why: str = "") -> None:
        super().__init__(f"{name}: {why}" if why else name)
        self.name = name
