"""The small frozen records that travel down the line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


Sites = Literal["all", "modules"]
FamilyName = Literal["relu", "smooth"]

Target = Literal["class", "attributes", "values"]
"""What labels are: a class; attributes, each there or not; numbers. See `harness.analysis.task_types`."""
Protocol = Literal["pixel", "paper"]
Compile = Literal["auto", "always", "never"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]


class Steering(NamedTuple):
    """One point of the grid.

    Args:
        beta: in [0, 1].
        c: in [0, 1].
        sites: which calls of an activation.
        family: which activations; see `harness.curvature.families`.
        native: the β of the untouched network, whatever the rest is.
        method: another way to adapt the network, its activations as they are; see `Model.adaptations`.
    """

    beta: float
    c: float = 0.5
    sites: Sites = "all"
    family: FamilyName = "relu"
    native: float = 1.0
    method: str = ""

    @property
    def is_baseline(self) -> bool:
        """Whether this is the untouched network."""
        return self.beta == self.native and not self.method

    @property
    def baseline(self) -> Steering:
        """The untouched network's."""
        return BASELINE if self.native == 1.0 else self._replace(beta=self.native, c=1.0, method="")

    def identity(self) -> str | list[Any]:
        """As JSON."""
        if self.is_baseline:
            return "baseline"
        if self.method:
            return [self.method]
        return [self.beta, self.c, self.sites] + ([] if self.family == "relu" else [self.family])


BASELINE = Steering(1.0)


class Preprocessing(NamedTuple):
    """How a picture of any size becomes what a model takes, before its pixels are in [0, 1].

    Args:
        resize: of the shorter side, or height and width; None leaves the size.
        crop: side of the square cut from the centre, or None.
        interpolation: of the resizing: "bilinear", "bicubic", …, as in ``torchvision.transforms.InterpolationMode``.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    interpolation: str = "bilinear"


AS_STORED = Preprocessing()
"""Pictures are taken as they are."""


@dataclass(frozen=True)
class Batch:
    """Images and labels.

    Args:
        x: float32 [n, c, h, w] in [0, 1].
        y: int64 [n], of attributes int64 [n, k] of 0 and 1, of values float32 [n, k]; see `Target`.
        indices: each image's stable number in its data set; int64 [n].
        names: each image's file below the root of its data set, where it has one.
    """

    x: Tensor
    y: Tensor
    indices: Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def part(self, which: Sequence[int]) -> Batch:
        """The images at these positions, in that order."""
        places = list(which)
        names = tuple(self.names[place] for place in places) if self.names else ()
        return Batch(self.x[places], self.y[places], self.indices[places], names)

    def to(self, device: str) -> Batch:
        """The same batch on ``device``."""
        return replace(self, x=self.x.to(device), y=self.y.to(device), indices=self.indices.to(device))


@dataclass(frozen=True)
class Coverage:
    """What the steering reached while the network ran on one input.

    Args:
        sites: calls of activations of the family.
        steered: those of them that are bent.
        kinds: the calls by activation, of the family and other (``{"relu": 17, "gelu": 2}``).
        native: the β at which the family is untouched.
    """

    sites: int
    steered: int
    kinds: Mapping[str, int]
    native: float = 1.0


@dataclass(frozen=True)
class Published:
    """The figures of one model on one board, of the whole test set (ImageNet: RobustBench's 5,000 images).

    Args:
        clean: accuracy on clean images, in [0, 1].
        robust: what the board ranks by, in [0, 1]: the accuracy under AutoAttack, or the mean accuracy over the
            corruptions; None under another threat than the board's.
        eps: of the board's ball, in pixels; None where it has none.
        source: the file of RobustBench's repository in which the figures stand.
    """

    clean: float
    robust: float | None
    eps: float | None
    source: str
