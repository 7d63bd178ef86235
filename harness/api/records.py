"""Small frozen records that pass between the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


Sites = Literal["all", "modules"]
FamilyName = Literal["relu", "smooth"]

Target = Literal["class", "attributes", "values"]
"""Type of the labels: one class, attributes that are present or not, or numbers; see `harness.analysis.task_types`."""
Protocol = Literal["pixel", "paper"]
Compile = Literal["auto", "always", "never"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]


class Steering(NamedTuple):
    """One point of the grid.

    Args:
        beta: steering parameter β, in [0, 1].
        c: weight of φ's SiLU-like term against its softplus, in [0, 1]; 0.5 in the paper.
        sites: calls of an activation that are steered: "all", or those of registered "modules".
        family: family of activations that are steered; see `harness.curvature.families`.
        native: β at which this family leaves the network untouched.
        method: name of another way to adapt the network, with its activations as they are (`Model.adaptations`);
            empty for a steering.
    """

    beta: float
    c: float = 0.5
    sites: Sites = "all"
    family: FamilyName = "relu"
    native: float = 1.0
    method: str = ""

    @property
    def is_baseline(self) -> bool:
        """True for the untouched network."""
        return self.beta == self.native and not self.method

    @property
    def baseline(self) -> Steering:
        """Steering that leaves the network untouched."""
        return BASELINE if self.native == 1.0 else self._replace(beta=self.native, c=1.0, method="")

    def identity(self) -> str | list[Any]:
        """Return the steering as JSON, for the identity of a result."""
        if self.is_baseline:
            return "baseline"
        if self.method:
            return [self.method]
        return [self.beta, self.c, self.sites] + ([] if self.family == "relu" else [self.family])


BASELINE = Steering(1.0)


class Preprocessing(NamedTuple):
    """Resizing and cropping by which a picture of any size becomes what a model takes.

    Args:
        resize: pixels of the shorter side, or height and width; None keeps the size.
        crop: side of the square cut from the centre, in pixels; None keeps all.
        interpolation: mode of the resizing, one of ``torchvision.transforms.InterpolationMode``, such as "bicubic".
    """

    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    interpolation: str = "bilinear"


AS_STORED = Preprocessing()
"""No preprocessing: pictures are taken as they are."""


@dataclass(frozen=True)
class Batch:
    """Images and labels.

    Args:
        x: images, float32 [n, c, h, w] in [0, 1].
        y: labels: classes int64 [n], attributes int64 [n, k] of 0 and 1, or values float32 [n, k]; see `Target`.
        indices: number of each image in its dataset, int64 [n]; it never changes.
        names: path of each image's file below the root of its dataset, where images are files.
    """

    x: Tensor
    y: Tensor
    indices: Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def part(self, which: Sequence[int]) -> Batch:
        """Return the images at these positions of the batch, in that order."""
        places = list(which)
        names = tuple(self.names[place] for place in places) if self.names else ()
        return Batch(self.x[places], self.y[places], self.indices[places], names)

    def to(self, device: str) -> Batch:
        """Return the batch on ``device``."""
        return replace(self, x=self.x.to(device), y=self.y.to(device), indices=self.indices.to(device))


@dataclass(frozen=True)
class Coverage:
    """Activations that the steering reached while the network ran on one input.

    Args:
        sites: number of calls of activations of the family.
        steered: number of those calls that are steered.
        kinds: number of calls by activation, also of other families (``{"relu": 17, "gelu": 2}``).
        native: β at which the family leaves the network untouched.
        spread: standard deviation of the pre-activations, the median over the steered calls; None where not measured.
    """

    sites: int
    steered: int
    kinds: Mapping[str, int]
    native: float = 1.0
    spread: float | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Published:
    """Published accuracies of a model, on the whole test set (ImageNet: RobustBench's 5,000 images).

    Args:
        clean: accuracy on clean images, in [0, 1].
        robust: accuracy under AutoAttack, or mean accuracy over the corruptions, in [0, 1]; None if it was not
            published for this threat.
        eps: radius of the threat's ball, in pixels; None where it has none.
        source: publication of the figures: for RobustBench, the file in its repository.
    """

    clean: float
    robust: float | None
    eps: float | None
    source: str
