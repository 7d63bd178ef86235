"""The contract of an attack: a step machine that advances many trials at once, one a slot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Network = Callable[["Tensor"], "Tensor"]
"""From images [n, c, h, w] in [0, 1] to logits [n, classes]."""


class Trials(NamedTuple):
    """Trials to be put into slots.

    Args:
        x: clean images, float32 [k, c, h, w] in [0, 1], classified correctly.
        y: their labels, int64 [k].
        targets: the class that a targeted attempt aims at, int64 [k]; ignored by untargeted ones.
        keys: of the trials' noise, int64 [k]; see `harness.util.noise`.
        variants: which of the attack's variants, such as APGD's losses, a trial is, int64 [k]; None: all the first.
    """

    x: Tensor
    y: Tensor
    targets: Tensor
    keys: Tensor
    variants: Tensor | None = None


class Attack(ABC):
    """Trials of one kind of attempt, each in a slot of its own, at steps of their own.

    A step calls the network on all slots, in one batch of fixed shape, and synchronises with no host. Nothing of a slot
    depends on another one. An empty slot is computed like any other, and forgotten.

    A CUDA graph of a step can stand in for further ones if the step is the same work on the same memory each time: it
    writes into the tensors of the machine, never puts another tensor in their place, and changes nothing else of it.
    These tensors are attributes of it or of its parts, in lists or tuples perhaps, not hidden in closures. What a step
    needs of the host goes into `prepare`, which is called before each step and each replay. A class that
    keeps to this sets `capturable`.

    Args of every implementation: the number of slots, the shape of an image, the number of classes, ε, budgets, device.
    """

    capturable: ClassVar[bool] = False
    """Whether a CUDA graph of one step can be replayed for the others."""

    forwards: int
    """Forward passes of the batch in a step, those with a backward pass among them."""
    backwards: int
    """Backward passes of the batch in a step."""

    fooled: Tensor
    """Mask of the slots whose trial has found an adversarial image, bool [w]."""
    finished: Tensor
    """Mask of the slots that are empty, or whose trial has fooled the network or spent its budget, bool [w]."""
    found: Tensor
    """The adversarial image of a slot that is fooled, float32 [w, c, h, w]; to be verified, not to be trusted."""

    @abstractmethod
    def start(self, slots: Tensor, trials: Trials) -> None:
        """Put trials into slots, int64 [k]; what these held before is forgotten, and no network is called."""

    def prepare(self) -> None:  # noqa: B027 - most attacks need nothing
        """Make ready for the next step, on the host and without a network; called before each one."""

    @abstractmethod
    def step(self, network: Network) -> None:
        """Advance every slot by one step; slots that are finished stay as they are."""


def run_to_the_end(attack: Attack, network: Network) -> None:
    """Advance an attack until every slot is finished, with no slot filled again."""
    while not attack.finished.all():
        attack.prepare()
        attack.step(network)
