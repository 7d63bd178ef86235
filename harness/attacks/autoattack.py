"""AutoAttack (Croce & Hein, arXiv 2003.01690): its attacks one by one, with its authors' settings.

Budgets, restarts, targets and losses are those of the package ``pyautoattack``, the reference; the attacks themselves
are the step machines of this package, so that each image can be attacked on its own.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.api.attack import Attack as StepMachine
from harness.api.threat import Flag, Passes
from harness.api.trial import Attempt
from harness.api.validation import Count, Few
from harness.attacks.norms import Norm

if TYPE_CHECKING:
    from torch import Tensor, nn

Name = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]

VERSIONS: dict[str, tuple[Name, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
SENTINEL, SENTINEL_QUERIES = "sentinel", 500
"""A short Square that looks after an attack without one, and its queries; see `harness.api.threat.Threat.sentinels`."""

FEWEST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
"""Least number of classes, since the DLR losses rank the three (targeted: four) largest logits."""

TARGETED = ("apgd-t", "fab-t")
"""Attacks that are made on one target class at a time."""

PLUS_RESTARTS, RAND_GRADIENTS = 5, 20
"""Restarts of the untargeted attacks in version "plus"; gradients averaged in each step of APGD in "rand"."""

L1_RESTARTS, L1_TARGETS = 5, 5
"""Restarts of untargeted and targets of targeted APGD in version "standard" under L1."""

FLAGS = {
    "randomized defense": "randomized",
    "probability distribution": "probabilities",
    "dynamic defense": "dynamic",
    "zero gradient": "zero_gradient",
    "classes": "few_classes",
}
"""Flag of the row for each of AutoAttack's warnings, which is recognised by this piece of its text."""


class Custom(BaseModel):
    """A selection of AutoAttack's attacks with a custom budget; each default is AutoAttack's own.

    Args:
        stages: names of the attacks, in the order in which they run.
        iterations: steps of APGD and FAB.
        restarts: random restarts of APGD (for each target of ``apgd-t``), FAB and Square; ``fab-t`` takes one.
        targets: number of target classes of the targeted attacks, at most the number of other classes.
        queries: queries of Square for each image and restart.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stages: Annotated[tuple[Name, ...], Field(min_length=1)]
    iterations: Count = 100
    restarts: Few = 1
    targets: Few = 9
    queries: Count = 5000

    @model_validator(mode="after")
    def _each_once(self) -> Custom:
        if len(set(self.stages)) < len(self.stages):
            raise ValueError("each attack may be named once")
        return self


Attack = Literal["standard", "plus", "rand"] | Custom


def stages(attack: Attack) -> tuple[Name, ...]:
    """Return the names of the attacks that ``attack`` runs, in order."""
    return attack.stages if isinstance(attack, Custom) else VERSIONS[attack]


def budget(attack: Attack) -> Custom:
    """Return the budget of every stage; see `restarts` and `gradients` for what differs between stages."""
    return attack if isinstance(attack, Custom) else Custom(stages=stages(attack))


def restarts(stage: str, attack: Attack, norm: Norm) -> int:
    """Return the number of restarts of a stage, the first run included (AutoAttack's own numbers)."""
    if stage == "fab-t":
        return 1
    if (stage, attack, norm) == ("apgd-ce", "standard", "L1"):
        return L1_RESTARTS
    untargeted = stage in ("apgd-ce", "apgd-dlr", "fab")
    return PLUS_RESTARTS if attack == "plus" and untargeted else budget(attack).restarts


def targets(stage: str, attack: Attack, norm: Norm) -> int:
    """Return the number of target classes of a targeted stage, where there are as many (AutoAttack's own numbers)."""
    return L1_TARGETS if (stage, attack, norm) == ("apgd-t", "standard", "L1") else budget(attack).targets


def losses(attack: Attack) -> set[str]:
    """Return the losses whose gradients the attack follows: FAB's differences of logits are margins, as DLR is."""
    from harness.attacks.gradient_masking import CROSS_ENTROPY, MARGIN

    return {CROSS_ENTROPY if stage == "apgd-ce" else MARGIN for stage in stages(attack) if stage != "square"}


def shrinks(attack: Attack, norm: Norm) -> bool:
    """Return whether APGD begins in larger balls than ε's, as "standard" does under L1."""
    return norm == "L1" and attack not in ("plus", "rand")


def gradients(attack: Attack) -> int:
    """Return the number of gradients that APGD averages in a step: more than one for randomised networks."""
    return RAND_GRADIENTS if attack == "rand" else 1


def attempts(stage: str, attack: Attack, norm: Norm, ranking: Sequence[int]) -> tuple[Attempt, ...]:
    """Return the attempts of a stage on one image: a restart each, of a targeted attack one for each target.

    Args:
        stage: name of the attack, one of ``stages(attack)``.
        attack: version of AutoAttack, or a custom budget.
        norm: norm of the ball.
        ranking: wrong classes by their logits on the clean image, largest first.
    """
    if len(ranking) + 1 < FEWEST_CLASSES.get(stage, 2):
        return ()
    runs = range(restarts(stage, attack, norm))
    if stage in TARGETED:
        return tuple(Attempt(stage, to, run) for to in ranking[: targets(stage, attack, norm)] for run in runs)
    return tuple(Attempt(stage, restart=run) for run in runs)


def identity(stage: str, attack: Attack, norm: Norm) -> dict[str, Any]:
    """Return every parameter of a stage that its results depend on, as JSON; targets and restarts are the attempts'."""
    asked = budget(attack)
    if stage in ("square", SENTINEL):
        return {"stage": stage, "queries": SENTINEL_QUERIES if stage == SENTINEL else asked.queries}
    averaged = {"gradients": gradients(attack)} if gradients(attack) > 1 else {}
    radius = {"radius": "fixed"} if norm == "L1" and stage.startswith("apgd") and not shrinks(attack, norm) else {}
    return {"stage": stage, "iterations": asked.iterations} | averaged | radius


def machine(
    stage: str, attack: Attack, *, norm: Norm, eps: float, slots: int, shape: tuple[int, ...], classes: int, device: str
) -> StepMachine:
    """Return the step machine of a stage.

    Args:
        stage: name of the attack, one of ``stages(attack)``.
        attack: version of AutoAttack, or a custom budget.
        norm: norm of the ball.
        eps: radius of the ball, in pixels.
        slots: number of trials that advance at once.
        shape: shape of an image: c, h, w.
        classes: number of logits.
        device: device of all tensors.
    """
    from harness.attacks.apgd import APGD
    from harness.attacks.fab import FAB
    from harness.attacks.square import Square

    asked = budget(attack)
    if stage in ("square", SENTINEL):
        queries = SENTINEL_QUERIES if stage == SENTINEL else asked.queries
        return Square(slots, shape, norm=norm, eps=eps, queries=queries, device=device)
    if stage in ("fab", "fab-t"):
        return FAB(
            slots, shape, norm=norm, eps=eps, classes=classes, targeted=stage == "fab-t", steps=asked.iterations,
            device=device,
        )  # fmt: skip
    return APGD(
        slots, shape, norm=norm, eps=eps, steps=asked.iterations, larger_radii=shrinks(attack, norm),
        gradients=gradients(attack), device=device,
    )  # fmt: skip


def variant(attempt: Attempt) -> int:
    """Return the variant of an attempt that its step machine runs; see `harness.api.attack.Trials`."""
    from harness.attacks.apgd_losses import CE, DLR, TARGETED_DLR
    from harness.attacks.fab import CLEAN_START, RANDOM_START

    losses = {"apgd-ce": CE, "apgd-dlr": DLR, "apgd-t": TARGETED_DLR}
    if attempt.stage in losses:
        return losses[attempt.stage]
    return RANDOM_START if attempt.stage == "fab" and attempt.restart else CLEAN_START


def inspect(attack: Attack, network: nn.Module, x: Tensor, y: Tensor) -> None:
    """Run AutoAttack's own checks of the defence on clean images, and warn of each finding with a `Flag`.

    Args:
        attack: version of AutoAttack, or a custom budget.
        network: classifier from images in [0, 1] to logits.
        x: clean images, float32 [n, c, h, w] in [0, 1].
        y: their labels, int64 [n].
    """
    from pyautoattack import checks

    with _as_flags():
        if attack != "rand":
            checks.check_randomized(network, x, y, bs=len(x))
        classes = checks.check_range_output(network, x)
        asked = budget(attack).targets
        checks.check_n_classes(classes, stages(attack), asked, asked)
        checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # its counters are global: reset those of the last model
        trace = sys.gettrace()
        try:
            checks.check_dynamic(network, x)
        finally:
            sys.settrace(trace)


def passes(stage: str, attack: Attack, norm: Norm, classes: int) -> Passes:
    """Count the passes that a stage of AutoAttack makes for an image that survives it (arXiv 2003.01690, Section 4).

    Args:
        stage: name of the attack, one of ``stages(attack)``.
        attack: version of AutoAttack, or a custom budget.
        norm: norm of the ball.
        classes: number of logits.
    """
    asked = budget(attack)
    runs = len(attempts(stage, attack, norm, range(classes - 1)))
    if stage in ("apgd-ce", "apgd-dlr", "apgd-t"):
        return Passes(gradients=runs * (asked.iterations + 1) * gradients(attack))
    if stage == "square":
        return Passes(forwards=runs * (asked.queries + 1))
    steps = asked.iterations * runs
    backward = 1 if stage == "fab-t" else classes - 1  # one for each other class
    return Passes(forwards=steps, gradients=steps * backward, own_steps=steps)


def project(x: Tensor, norm: Norm) -> None:
    """Project two points for each image onto a hyperplane, as one step of FAB does, to measure its cost."""
    from harness.attacks.fab import projection

    points = x.flatten(1)
    normals = points - points.mean(1, keepdim=True)
    offsets = (normals * points).sum(1) + 0.1 * normals.abs().sum(1)
    projection(norm, x.device)(points.expand(2, *points.shape), normals, offsets)


@contextmanager
def _as_flags() -> Iterator[None]:
    """Turn AutoAttack's warnings into flags, and pass every other warning on unchanged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = str(warning.message)
        flag = next((flag for piece, flag in FLAGS.items() if piece in text), None)
        warnings.warn(Flag(flag, text) if flag else warning.message, stacklevel=3)
