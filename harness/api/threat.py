"""The contract of a threat: what may be done to an image, in which stages, and at what cost."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.api.part import Part
from harness.api.trial import Attempt

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api.attack import Attack
    from harness.api.records import Batch
    from harness.util.noise import Noise

SLACK = 1e-4
"""Tolerance of the ball for float32 rounding, as a share of ε."""
SLACK_BOX = 1e-6
"""Tolerance in pixels of the box [0, 1] and, on top of `SLACK`, of the ball."""


def beyond_box(low: float, high: float) -> str:
    """Return by how much pixels leave [0, 1], for a message; empty if by no more than rounding, `SLACK_BOX`.

    Args:
        low: least pixel.
        high: largest pixel.
    """
    if math.isnan(low + high):
        return "NaN among them"
    below = f"{-low:.3g} below 0" if low < -SLACK_BOX else ""
    above = f"{high - 1:.3g} above 1" if high > 1 + SLACK_BOX else ""
    return " and ".join(filter(None, (below, above)))


BACKWARD = 3.0
"""Cost of a forward pass with its backward pass, in forward passes."""


@dataclass(frozen=True)
class Passes:
    """Passes through the network that a stage needs at most for one image.

    Args:
        forwards: number of forward passes.
        gradients: number of forward passes with a backward pass.
        own_steps: number of steps of the stage's work outside the network; see `Threat.own_work`.
    """

    forwards: int = 0
    gradients: int = 0
    own_steps: int = 0

    @property
    def in_forwards(self) -> float:
        """All passes, in forward passes."""
        return self.forwards + BACKWARD * self.gradients


class Threat(Part):
    """An ordered list of stages, each with one or more attempts, and how their results are reduced to a score.

    An attempt proposes an image; the harness verifies and judges it. With ``reduction`` "worst" an image is robust when
    it is classified correctly and survives every attempt, in whatever order they are made; with "mean" its score is the
    share of the stages that it survives.
    """

    reduction: ClassVar[Literal["worst", "mean"]] = "worst"

    @classmethod
    def defaults(cls, dataset: str) -> dict[str, Any]:
        """Return the keys that a benchmark on ``dataset`` (a kind) may leave out, with their values."""
        return {}

    @property
    def standard(self) -> bool:
        """True if this is what the published leaderboards measure, ε aside, so that results can be compared."""
        return False

    @property
    @abstractmethod
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, in order, without the clean stage, which every threat has."""

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the stages that are attacks; none with reduction "mean"."""
        return self.stages if self.reduction == "worst" else ()

    @property
    def ranks(self) -> int:
        """Number of wrong classes, the most likely first, that `attempts` wants to know of an image."""
        return 0

    def attempts(self, stage: str, ranking: Sequence[int]) -> tuple[Attempt, ...]:
        """Return the attempts of a stage on one image under one steering, in the order in which to make them.

        Args:
            stage: name of the stage, one of `stages`.
            ranking: wrong classes by their logits on the clean image, largest first; `ranks` of them, or all.
        """
        return (Attempt(stage),)

    def stage_identity(self, stage: str) -> dict[str, Any]:
        """Return what a stage is, as JSON, with every parameter that its results depend on and `identity` leaves out.

        Results are found again by it. If both leave out the other stages, benchmarks share what they have in common.
        """
        return {"stage": stage}

    def prepare(self, batch: Batch | None, *, offline: bool = False) -> None:
        """Provide what the stages need, and refuse images that they cannot work on. Called before any trial.

        Args:
            batch: a few of the images with a model's preprocessing; None from ``doctor`` when the data are missing.
            offline: whether to refuse every download.

        Raises:
            HarnessError: something is missing, damaged, or does not suit the images; the message says what to do.
        """

    def attack_machine(
        self, stage: str, slots: int, shape: tuple[int, ...], classes: int, device: str
    ) -> Attack | None:
        """Return the step machine of a stage, which works on every image apart; None to use `perturb`.

        Args:
            stage: name of the stage, one of `stages`.
            slots: number of trials that advance at once.
            shape: shape of an image: c, h, w.
            classes: number of logits.
            device: device of all its tensors.
        """
        return None

    @property
    def concurrent(self) -> bool:
        """True if `perturb` calls no network, raises no `Flag`, and several threads may call it at once.

        It is then called ahead of time, on a few images on the CPU in each thread: worth it where images are decoded.
        """
        return False

    def variant(self, attempt: Attempt) -> int:
        """Return the variant of its attack that an attempt is, for a step machine that has several."""
        return 0

    def perturb(self, stage: str, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        """Return the images that ``stage`` makes of a batch: [n, c, h, w] in [0, 1], in the same order.

        What becomes of an image must not depend on the others of the batch, nor on their number. To flag the row on the
        leaderboard, ``warnings.warn(Flag("name", "why"))``. Not called for a stage that has an `attack_machine`.

        Args:
            stage: name of the stage, one of `stages`.
            network: network from images in [0, 1] to logits, in eval mode; one that refuses to run if `concurrent`.
            batch: images that the network classifies correctly; with reduction "mean", any images.
            noise: source of all randomness, an independent stream for each image, the same in every run.
        """
        raise NotImplementedError(f"{self.kind}: the stage {stage} needs a step machine, or perturb")

    def check(self, x: Tensor, perturbed: Tensor) -> None:
        """Refuse images that this threat does not allow. Called on every output of `perturb`.

        Args:
            x: clean images [n, c, h, w].
            perturbed: images that a stage made of them; their shape, and that they are finite and in [0, 1], has been
                checked before.

        Raises:
            InvalidAdversary: an image is outside what the threat allows.
        """

    def passes(self, stage: str, classes: int) -> Passes | None:
        """Return the passes that ``stage`` needs at most, for an image that survives it; None if they are not known.

        ``ct-harness doctor`` estimates the duration from them. With reduction "mean" a stage needs one forward pass, to
        judge its image; the time to make that image is measured.

        Args:
            stage: name of the stage, one of `stages`.
            classes: number of logits.
        """
        return Passes(forwards=1) if self.reduction == "mean" else None

    def own_work(self, x: Tensor) -> None:
        """Do one step of the work that the attack does outside the network, for ``ct-harness doctor`` to time.

        Not called where it can time a step of the stage's `attack_machine`.

        Args:
            x: images [n, c, h, w] in [0, 1]; to be left unchanged.
        """

    def smoke_test(self, network: nn.Module, batch: Batch) -> tuple[str, Tensor]:
        """Try the threat on a few images, within seconds. Called by ``ct-harness doctor``.

        Args:
            network: network from images in [0, 1] to logits, in eval mode.
            batch: a few images that the network classifies correctly; with reduction "mean", any images.

        Returns:
            The name of the stage that was tried, and the images [n, c, h, w] that it made; the harness verifies them.

        Raises:
            ModelError: the network cannot be attacked; the message says why.
        """
        from harness.util.noise import Noise

        stage = self.stages[0]
        return stage, self.perturb(stage, network, batch, Noise(0, batch.indices)).detach()

    @property
    def sentinels(self) -> tuple[Attempt, ...]:
        """Attempts on a few images that have survived every stage, in which no gradient can mislead.

        They have no part in the score; where they fool the network, its row is flagged. Their stages, none of `stages`,
        have an `attack_machine` and a `stage_identity`.
        """
        return ()

    def inspect(self, network: nn.Module, batch: Batch) -> None:
        """Look on clean images for signs that attacks on this network are misled, and warn with `Flag`."""

    def unit_test(self, network: nn.Module, batch: Batch, noise: Noise) -> Tensor | None:
        """Try the attack where it is known to be able to succeed: on planted adversarial examples.

        Args:
            network: network from images in [0, 1] to logits, in eval mode.
            batch: images that the network classifies correctly.
            noise: source of all randomness, an independent stream for each image.

        Returns:
            1 where the attack found the example, 0 where it did not, NaN where none could be planted, [n]; None if
            there is no such test of this threat.
        """
        return None

    def summary_columns(self, accuracy: Mapping[str, float]) -> dict[str, float]:
        """Return further columns of a leaderboard row, such as the mean corruption error.

        Args:
            accuracy: share of the images that survive each stage, in [0, 1], by stage; stages may be missing.
        """
        return {}

    def columns(self) -> dict[str, str]:
        """Return the threat's columns on the leaderboard: ``threat``, ``eps``, ``attack``; "" where it has none."""
        return {"threat": self.kind, "eps": "", "attack": ""}


class Flag(UserWarning):
    """A warning that flags the row on the leaderboard.

    Args:
        name: the flag, one lower-case word.
        why: what the flag is based on.
    """

    def __init__(self, name: str, why: str = "") -> None:
        super().__init__(f"{name}: {why}" if why else name)
        self.name = name
