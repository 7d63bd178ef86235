"""Lp threats: any image within ε of the clean one, in pixels, as found by AutoAttack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, field_validator

from harness.api.attack import Attack as StepMachine
from harness.api.threat import SLACK, SLACK_BOX, Passes, Threat
from harness.api.trial import Attempt
from harness.attacks import autoattack, gradient_masking
from harness.attacks.autoattack import Attack
from harness.attacks.norms import Norm
from harness.errors import InvalidAdversary
from harness.util.numbers import as_number

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api.records import Batch
    from harness.util.noise import Noise


FINEST = 2.0**-24
"""Distance of two float32 pixels just below 1: a smaller ε leaves most images as they are."""
FEWEST_L1_STEPS = 3
"""Least number of steps of APGD under L1: one at each of its radii."""


def parse_pixels(value: Any) -> Any:
    """Turn a text such as "8/255" into a number of pixels; pydantic checks everything else.

    Raises:
        ValueError: a text that is not a number or a fraction.
    """
    number = as_number(value)
    if isinstance(number, str):
        raise ValueError('expected a number in pixels such as 0.03 or "8/255"')
    return number


class Lp(Threat):
    """Images within ε of the clean one and within [0, 1]; the stages are AutoAttack's attacks.

    Args:
        eps: ε in pixels of [0, 1], as a number or a fraction: 0.03 or "8/255".
        attack: version of AutoAttack, or a choice of its attacks with budgets of their own.
    """

    norm: ClassVar[Norm]
    robustbench_eps: ClassVar[dict[str, str]] = {}
    """RobustBench's ε, by the kind of the dataset."""

    eps: Annotated[
        float,
        Field(strict=True, gt=0, allow_inf_nan=False, description='in pixels of [0, 1]: 0.03 or "8/255"'),
        BeforeValidator(parse_pixels),
    ]
    attack: Attack = "standard"

    @classmethod
    def defaults(cls, dataset: str) -> dict[str, Any]:
        """Return RobustBench's ε for ``dataset``, if it has one."""
        return {"eps": cls.robustbench_eps[dataset]} if dataset in cls.robustbench_eps else {}

    @property
    def standard(self) -> bool:
        """See `Threat.standard`."""
        return self.attack == "standard"

    @property
    def stages(self) -> tuple[str, ...]:
        """AutoAttack's attacks, in its order."""
        return autoattack.stages(self.attack)

    @property
    def ranks(self) -> int:
        """Number of targets of the targeted attacks, at least AutoAttack's nine, so that benchmarks share results."""
        return max(autoattack.budget(self.attack).targets, 9)

    def identity(self) -> dict[str, Any]:
        """Return the ball alone, so that benchmarks with other attacks share what they have in common."""
        return {"kind": self.kind, "eps": self.eps}

    def stage_identity(self, stage: str) -> dict[str, Any]:
        """See `harness.attacks.autoattack.identity`."""
        return autoattack.identity(stage, self.attack, self.norm)

    def attempts(self, stage: str, ranking: Sequence[int]) -> tuple[Attempt, ...]:
        """See `harness.attacks.autoattack.attempts`."""
        return autoattack.attempts(stage, self.attack, self.norm, ranking)

    @property
    def sentinels(self) -> tuple[Attempt, ...]:
        """A short Square, where the attack has none of its own."""
        return () if "square" in self.stages else (Attempt(autoattack.SENTINEL),)

    def attack_machine(self, stage: str, slots: int, shape: tuple[int, ...], classes: int, device: str) -> StepMachine:
        """See `harness.attacks.autoattack.machine`."""
        return autoattack.machine(
            stage, self.attack, norm=self.norm, eps=self.eps, slots=slots, shape=shape, classes=classes, device=device
        )

    def variant(self, attempt: Attempt) -> int:
        """See `harness.attacks.autoattack.variant`."""
        return autoattack.variant(attempt)

    def passes(self, stage: str, classes: int) -> Passes:
        """See `harness.attacks.autoattack.passes`."""
        return autoattack.passes(stage, self.attack, self.norm, classes)

    def own_work(self, x: Tensor) -> None:
        """Do one of FAB's projections."""
        autoattack.project(x, self.norm)

    def smoke_test(self, network: nn.Module, batch: Batch) -> tuple[str, Tensor]:
        """Check the gradient, then run the shortest APGD; see `Threat.smoke_test`."""
        import torch

        from harness.api.attack import Trials, run_to_the_end

        gradient_masking.refuse_blind(network, batch.x, batch.y)
        stage: autoattack.Name = "apgd-ce"
        steps = FEWEST_L1_STEPS if self.norm == "L1" else 1
        shortest = autoattack.Custom(stages=(stage,), iterations=steps)
        n, slots = len(batch), torch.arange(len(batch), device=batch.x.device)
        attack = autoattack.machine(
            stage, shortest, norm=self.norm, eps=self.eps, slots=n, shape=tuple(batch.x.shape[1:]), classes=0,
            device=str(batch.x.device),
        )  # fmt: skip
        attack.start(slots, Trials(batch.x, batch.y, batch.y, keys=slots))
        run_to_the_end(attack, network)
        return stage, attack.found.detach().clone()

    def inspect(self, network: nn.Module, batch: Batch) -> None:
        """Run AutoAttack's checks of the defence, and ours of its gradient."""
        autoattack.inspect(self.attack, network, batch.x, batch.y)
        gradient_masking.inspect(network, batch.x, batch.y, autoattack.losses(self.attack))

    def unit_test(self, network: nn.Module, batch: Batch, noise: Noise) -> Tensor:
        """Return at which images the attack finds the example planted there; see `harness.attacks.unit_test`.

        Square is left out where there is another attack, since it searches as the example was planted.
        """
        import torch

        from harness.attacks import unit_test

        x = batch.x
        readout, planted = unit_test.plant(network, x, noise, self.norm, self.eps)
        found = torch.zeros_like(planted)
        for stage in [stage for stage in self.stages if stage != "square"] or ["square"]:
            left = (planted & ~found).nonzero().flatten()
            if not len(left):
                break
            own, binary = noise.part(left), unit_test.Planted(network, readout.part(left))
            shape, device = tuple(x.shape[1:]), str(x.device)
            attack: StepMachine | None = self.attack_machine(stage, len(left), shape, unit_test.CLASSES, device)
            if attack is not None:  # as of a subclass whose stage is a plain function
                unit_test.run(attack, binary, x[left], unit_test.keys_of(own), self.variant(Attempt(stage)))
                found[left] = attack.fooled
            else:
                part = batch.part(left.tolist())
                images = self.perturb(stage, binary, replace(part, y=torch.zeros_like(part.y)), own)
                found[left] = binary(images).argmax(1) == 1
        return torch.where(planted, found.float(), torch.nan)

    def check(self, x: Tensor, perturbed: Tensor) -> None:
        """Refuse images farther than ε from ``x``, float32 rounding aside; see `Threat.check`."""
        farthest = self.distance(x, perturbed).max().item()
        if farthest > self.eps * (1 + SLACK) + SLACK_BOX:
            raise InvalidAdversary(
                f"the attack returned an image at {self.norm} distance {farthest:.6g} where eps is {self.eps:.6g}, "
                f"{farthest - self.eps:.3g} too far; project it onto the ball",
                "invalid",
            )

    def distance(self, x: Tensor, perturbed: Tensor) -> Tensor:
        """Return the distance of each image from its clean one, in pixels; float64 [n]."""
        import torch

        difference = (perturbed.double() - x.double()).flatten(1)
        order = {"Linf": torch.inf, "L2": 2, "L1": 1}[self.norm]
        result: Tensor = torch.linalg.vector_norm(difference, order, dim=1)
        return result

    def columns(self) -> dict[str, str]:
        """Return the norm, ε in pixels, and the version of AutoAttack or the chosen attacks."""
        custom = isinstance(self.attack, autoattack.Custom)
        return {
            "threat": self.kind,
            "eps": f"{self.eps:.6g}",
            "attack": "custom:" + "+".join(self.stages) if custom else str(self.attack),
        }

    @field_validator("eps")
    @classmethod
    def _shows_in_float32(cls, value: float) -> float:
        """Reject an ε that moves no pixel, so that every image would be robust."""
        if value < FINEST:
            raise ValueError(
                f"eps is finer than float32 pixels can show: expected at least {FINEST:.2g}, found {value:g}; write a "
                'larger one such as "8/255", or threat={kind: clean} for the accuracy without an attack'
            )
        return value

    @field_validator("eps")
    @classmethod
    def _no_grey_levels(cls, value: float) -> float:
        """Reject an ε given in 0 … 255 instead of [0, 1], the commonest slip."""
        if cls.norm == "Linf" and value > 1:
            raise ValueError('eps is in pixels of [0, 1], so at most 1: write "8/255" for 8 of 255 grey levels')
        return value


class Linf(Lp):
    """Every pixel may move by at most ``eps``."""

    kind = "Linf"
    norm = "Linf"
    robustbench_eps: ClassVar[dict[str, str]] = {"cifar10": "8/255", "cifar100": "8/255", "imagenet": "4/255"}


class L2(Lp):
    """The Euclidean distance over all pixels is at most ``eps``."""

    kind = "L2"
    norm = "L2"
    robustbench_eps: ClassVar[dict[str, str]] = {"cifar10": "0.5", "cifar100": "0.5", "imagenet": "3.0"}


class L1(Lp):
    """The absolute changes of all pixels sum to at most ``eps``."""

    kind = "L1"
    norm = "L1"

    @field_validator("attack")
    @classmethod
    def _steps_at_each_radius(cls, value: Attack) -> Attack:
        """Reject a budget of APGD that leaves a radius without a step."""
        apgd = [stage for stage in autoattack.stages(value) if stage.startswith("apgd")]
        found = autoattack.budget(value).iterations
        if apgd and found < FEWEST_L1_STEPS:
            raise ValueError(
                f"iterations: under L1, APGD takes steps at three radii (3 ε, 2 ε, ε), so expected at least "
                f"{FEWEST_L1_STEPS}, found {found}; raise iterations, or leave out {', '.join(apgd)}"
            )
        return value
